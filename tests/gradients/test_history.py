"""What is remembered, and what a run does with it."""

import functools

import pytest
import torch

import particlevi as pvi
from particlevi.gradients._partition import Partition
from particlevi.storage import checkpoint as files
from particlevi.streams import ParticleStreams
from particlevi.typing import Progress

D64 = torch.float64


def filled(options, steps, num_warmup=0, num_particles=2):
    """The bank after ``steps`` steps at which every particle stands at the step's number."""
    bank = options.init(torch.zeros(num_particles, 1, dtype=D64))
    for step in range(1, steps + 1):
        here = torch.tensor([[step], [-step]], dtype=D64)[:num_particles]
        bank = options.record(bank, here, Progress(step, num_warmup, 10**6))
    return bank


def test_ring_buffer_keeps_the_latest():
    bank = filled(pvi.gradients.history(capacity=4, thin=1), 10)
    assert bank.values[0, :, 0].tolist() == [9, 10, 7, 8]
    assert bank.values[1, :, 0].tolist() == [-9, -10, -7, -8]
    assert int(bank.seen) == 10


def test_thinning():
    bank = filled(pvi.gradients.history(capacity=4, thin=3), 10)
    assert bank.values[0, :, 0].tolist() == [1, 4, 7, 10]


def test_warmup_is_left_out():
    bank = filled(pvi.gradients.history(capacity=4, thin=2), 13, num_warmup=9)
    assert bank.values[0, : int(bank.seen), 0].tolist() == [9, 11, 13]
    bank = filled(pvi.gradients.history(capacity=4, thin=2, after=10), 13, num_warmup=5)
    assert bank.values[0, : int(bank.seen), 0].tolist() == [10, 12]


def test_reservoir_is_uniform_over_the_run():
    """Entries of many disjoint reservoirs; every step as often as any other."""
    capacity, steps = 500, 2000
    bank = filled(pvi.gradients.history(capacity=capacity, thin=1, replace="random"), steps)
    kept = bank.values[0, :, 0].sort().values
    assert len(kept.unique()) == capacity
    share = torch.histc(kept, bins=10, min=0.5, max=steps + 0.5)
    spread = (capacity / 10 * 0.9 * (1 - capacity / steps)) ** 0.5
    assert ((share - capacity / 10).abs() < 5 * spread).all()
    assert not torch.equal(kept, torch.arange(steps - capacity + 1.0, steps + 1, dtype=D64))


def test_the_first_entry_beyond_the_capacity_may_be_refused():
    """With probability 1 / (C + 1): 7.2 of these on average, none with probability 5e-4."""
    refused = [
        capacity
        for capacity in range(1, 2000)
        if pvi.gradients.history(capacity=capacity, replace="random")._slot(capacity) is None
    ]
    assert 1 <= len(refused) <= 20


def test_first_entries_are_those_given():
    initial = torch.tensor([[5.0], [6.0]], dtype=D64)
    bank = filled(pvi.gradients.history(capacity=3, thin=1, initial=initial), 2)
    assert bank.values[0, :, 0].tolist() == [2, 6, 1]
    frozen = filled(pvi.gradients.history(initial=initial, frozen=True), 2)
    assert frozen.values[:, :, 0].tolist() == [[5, 6]]


@pytest.mark.parametrize("steps", [3, 9])
@pytest.mark.parametrize("pooled", [False, True])
def test_rows_are_the_chains_own_unless_pooled(pooled, steps):
    options = pvi.gradients.history(capacity=4, thin=1, pooled=pooled)
    bank = filled(options, steps)
    entries = options.draw(bank, 80, 1, ParticleStreams(0))
    rows = options.rows(bank, entries)
    drawn = bank.values.flatten(0, 1)[rows.flatten()].view(2, 80).T
    kept = set(range(max(1, steps - 3), steps + 1))
    assert set(drawn.flatten().tolist()) == kept | {-step for step in kept}
    own = (drawn[:, 0] > 0).all() and (drawn[:, 1] < 0).all()
    assert bool(own) is not pooled


def test_a_pooled_bank_takes_nothing_from_diverged_chains():
    options = pvi.gradients.history(capacity=2, thin=1, pooled=True)
    bank = options.init(torch.zeros(3, 2))
    here = torch.tensor([[float("nan"), 0.0], [1.0, 2.0], [3.0, 4.0]])
    bank = options.record(bank, here, Progress(1, 0, 100))
    assert bank.values[0, :3].tolist() == [[1, 2], [1, 2], [3, 4]]


def test_first_entries_of_a_pooled_bank():
    initial = torch.tensor([[5.0], [6.0]], dtype=D64)
    bank = filled(pvi.gradients.history(capacity=3, thin=1, initial=initial, pooled=True), 2)
    assert bank.values[0, :, 0].tolist() == [2, -2, 6, 6, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_of_the_bank(dtype):
    potential = pvi.from_log_density(lambda theta: -0.5 * theta @ theta, 3)
    options = pvi.gradients.history(dtype=dtype, initial=torch.full((2, 3), 1 / 3))
    estimator = pvi.structured(potential, "parameter", history=options)
    state = estimator.init(torch.zeros(4, 3), ParticleStreams(0))
    assert state.values.dtype == dtype
    _, entries = estimator.draw_noise(state, ParticleStreams(0))
    values = estimator._values(state, entries)
    assert values.dtype == torch.float32
    assert (values == torch.tensor(1 / 3, dtype=dtype).float()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity"),
        ({"thin": 0}, "thin"),
        ({"after": -1}, "after"),
        ({"replace": "newest"}, "replace must be one of"),
        ({"dtype": torch.int32}, "floating point"),
        ({"dtype": "bfloat16"}, "floating point torch.dtype, got 'bfloat16'"),
        ({"frozen": True}, "stays empty"),
        ({"initial": torch.zeros(0, 3)}, "at least one entry"),
        ({"initial": torch.zeros(3)}, r"at least one entry \[S, D\]"),
        ({"initial": torch.tensor([[torch.nan]])}, "finite"),
        ({"initial": torch.zeros(3, 1), "capacity": 2}, "more than the capacity"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        pvi.gradients.history(**options)


def test_what_is_no_history_or_no_tensor():
    potential = pvi.from_log_density(lambda theta: -0.5 * theta @ theta, 3)
    with pytest.raises(TypeError, match=r"must be pvi.gradients.history\(.*got int"):
        pvi.structured(potential, "parameter", history=200)
    with pytest.raises(TypeError, match=r"tensor of entries \[S, D\], got list"):
        pvi.gradients.history(initial=[[0.0, 0.0, 0.0]])


def test_entries_of_another_length():
    potential = pvi.from_log_density(lambda theta: -0.5 * theta @ theta, 3)
    with pytest.raises(ValueError, match=r"must be \[S, 3\], got \[2, 4\]"):
        pvi.structured(
            potential, "parameter", history=pvi.gradients.history(initial=torch.zeros(2, 4))
        )


@pytest.mark.parametrize(
    "groups", [[0, 0, 1, 1, 1, 2], [2, 0, 1, 0, 2, 1], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]]
)
@pytest.mark.parametrize("repeats", [1, 20])
@pytest.mark.parametrize("compiling", [False, True])
def test_partition(groups, repeats, compiling, monkeypatch):
    """By runs or number by number, at once or by halves, the same."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    groups = torch.tensor(groups).repeat(repeats)
    partition = Partition(groups)
    generator = torch.Generator().manual_seed(0)
    size, num_groups = len(groups), partition.num_groups
    for count in (1, 3000):
        rows = torch.randn(7, size, generator=generator)
        index = torch.randint(7, (count, num_groups), generator=generator)
        wanted = rows[index[:, groups], torch.arange(size)]
        assert torch.equal(partition.gather(rows, index), wanted)
        assert torch.equal(partition.spread(index), index[:, groups])


# --- runs ------------------------------------------------------------------------------------


def potential():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    return pvi.from_module(net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=20)


def data():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    return x, x[:, :1].sin()


ESTIMATORS = {
    "structured": lambda **options: pvi.structured(
        potential(), "layer", history=pvi.gradients.history(capacity=5, thin=2, **options)
    ),
    "dropout": lambda **options: pvi.structured_dropout(
        potential(),
        "neuron",
        keep=0.5,
        history=pvi.gradients.history(capacity=5, thin=2, **options),
    ),
    "beta": lambda **options: pvi.structured_dropout(
        potential(),
        "tensor",
        mask=("beta", 0.5, 0.5),
        history=pvi.gradients.history(capacity=5, **options),
    ),
}


def arguments(**options):
    return {
        "data": data(),
        "step_size": 1e-3,
        "num_particles": 3,
        "num_warmup": 8,
        "batch_size": 4,
        "progress": False,
        **options,
    }


class Stop(Exception):
    pass


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("replace", ["oldest", "random"])
@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("sampler", ["sgld", "sghmc"])
def test_resume_is_bit_for_bit(tmp_path, monkeypatch, name, replace, pooled, sampler):
    """A run killed while its bank is being filled, and one killed after it is full."""
    make = functools.partial(ESTIMATORS[name], replace=replace, pooled=pooled)
    factory = getattr(pvi, sampler)
    whole = pvi.sample(factory(make()), **arguments(num_draws=40))
    for when in (11, 40):
        folder = tmp_path / str(when)
        estimator = make()
        record = estimator.record

        def failing(state, particles, progress, record=record, when=when):
            if progress.step == when:
                raise Stop
            return record(state, particles, progress)

        monkeypatch.setattr(estimator, "record", failing)
        with pytest.raises(Stop):
            pvi.sample(
                factory(estimator),
                **arguments(num_draws=40),
                checkpoint=pvi.storage.Checkpoint(folder, every=1),
            )
        resumed = pvi.resume(folder, factory(make()), data(), progress=False)
        assert torch.equal(whole.particles, resumed.particles)
        for key, value in whole.stats.items():
            assert torch.equal(value, resumed.stats[key])


def test_the_bank_is_in_the_checkpoint(tmp_path):
    draws = pvi.sample(
        pvi.sgld(ESTIMATORS["structured"]()), **arguments(num_draws=40), checkpoint=tmp_path
    )
    tensors, _ = files.read(tmp_path / "state.safetensors")
    bank = tensors["state.estimator.values"]
    kept = draws.particles[:, 1::2][:, -5:]  # steps 10, 12 ... 48, the ring is 20 entries in
    assert torch.equal(bank.sort(dim=1).values, kept.sort(dim=1).values)


def test_a_checkpoint_of_another_history_is_refused(tmp_path):
    pvi.sample(pvi.sgld(ESTIMATORS["structured"]()), **arguments(num_draws=10), checkpoint=tmp_path)
    other = pvi.sgld(ESTIMATORS["structured"](pooled=True))
    with pytest.raises(ValueError, match=r"history\.pooled was false, is true"):
        pvi.resume(tmp_path, other, data(), progress=False)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_seeds(name):
    def draw(seed):
        sampler = pvi.sgld(ESTIMATORS[name]())
        return pvi.sample(sampler, **arguments(num_draws=20), seed=seed).particles

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0)[:, -1], draw(1)[:, -1])


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_warmup_is_that_of_the_plain_sampler(name):
    """Bit for bit, up to the step after the first entry, where history and present are one."""
    plain = pvi.sample(pvi.sgld(potential()), **arguments(num_draws=8)).particles
    other = pvi.sample(pvi.sgld(ESTIMATORS[name](after=11)), **arguments(num_draws=8)).particles
    assert torch.equal(plain[:, :3], other[:, :3])
    assert not torch.equal(plain[:, 5], other[:, 5])


@pytest.mark.parametrize(("name", "sampler"), [("structured", "sghmc"), ("beta", "psgld")])
def test_compiled_runs_agree(name, sampler):
    """Before and after the first entry, without a graph break: up to rounding the same draws."""

    def draw(compile):
        made = getattr(pvi, sampler)(ESTIMATORS[name]())
        return pvi.sample(made, **arguments(num_draws=8), compile=compile).particles

    torch.testing.assert_close(draw(False), draw(True), rtol=1e-4, atol=1e-5)
