"""Random shapes, dtypes and values: an error of ours or a right answer, nothing else.

The long run is ``python -m pytest -m slow tests/test_any_input.py``: 20 000 calls of everything
that is public (``tests/calls``).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import particlevi as pvi
from particlevi.potentials.layout import Layout
from tests.calls import CALLS, any_call, obscure, outcome
from tests.calls.anything import DTYPES, NUMBERS, tensors
from tests.calls.table import RESULTS, TOO_LONG
from tests.test_bad_input import DRAWS, NORMAL, N, regression, run

COUNTS = st.one_of(st.integers(-1, 4), NUMBERS.filter(lambda n: not _large(n)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Calls that write files write them here."""
    monkeypatch.chdir(tmp_path)


def _large(number):
    return isinstance(number, (int, float)) and not isinstance(number, bool) and number > 50


def ours_or_right(act):
    """What ``act`` gives, or None if an error of ours was raised; anything else is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return act()
    except Exception as error:
        if obscure(error):
            raise
        return None


anything = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def in_objects(options):
    """Arguments of a storage and a monitor put where they belong."""
    names = {"keep": "keep", "storage_dtype": "dtype"}
    storage = {names[name]: options.pop(name) for name in names if name in options}
    if storage:
        options["store"] = pvi.storage.InMemory(**storage)
    if "check_every" in options:
        options["monitor"] = pvi.running.Monitor(every=options.pop("check_every"))
    return options


@anything
@given(st.dictionaries(
    st.sampled_from(["step_size", "num_particles", "num_draws", "num_warmup", "thin", "seed",
                     "check_every", "keep", "initial", "storage_dtype", "batch_size", "batching"]),
    st.one_of(COUNTS, tensors(), DTYPES, st.sampled_from(["theta", "epoch", "normal", ["theta"]])),
    max_size=3,
))  # fmt: skip
def test_sample_with_anything(options):
    draws = ours_or_right(lambda: run(**in_objects(options)))
    if draws is not None:
        assert draws.particles.ndim == 3
        assert torch.isfinite(draws.particles.float()).all()


@anything
@given(
    st.sampled_from(["Gaussian", "Learned", "StudentT", "Bernoulli", "Categorical", "Poisson"]),
    st.one_of(
        st.tuples(tensors(), tensors()),
        st.tuples(
            tensors(st.sampled_from([(N, 3)])),
            tensors(st.sampled_from([(N,), (N, 1), (N, 2), (N, 1, 1), (N - 1, 1)])),
        ),
        tensors(),
        st.tuples(tensors(), tensors(), tensors()),
        st.lists(st.tuples(tensors(), tensors()), max_size=2),
    ),
    st.one_of(st.none(), st.integers(-1, N + 1)),
    st.integers(1, 2),
)
def test_data_of_any_kind(name, given, batch_size, outputs):
    likelihood = {
        "Gaussian": pvi.Gaussian(0.5),
        "Learned": pvi.Gaussian("learned", outputs),
        "StudentT": pvi.StudentT(3.0),
        "Bernoulli": pvi.Bernoulli(),
        "Categorical": pvi.Categorical(),
        "Poisson": pvi.Poisson(),
    }[name]
    potential = regression(likelihood, outputs)
    draws = ours_or_right(
        lambda: run(potential, given, batch_size=batch_size, step_size=1e-6, num_draws=1)
    )
    if draws is not None:
        assert draws.particles.shape == (2, 1, potential.num_params)
        assert torch.isfinite(draws.particles).all()


@anything
@given(tensors(), tensors())
def test_functions_of_any_data(first, second):
    def log_likelihood(theta, batch):
        return -(batch[0] - theta).square() * batch[1]

    potential = pvi.from_log_likelihood(lambda t: -t.square().sum(), log_likelihood, 1, N)
    draws = ours_or_right(lambda: run(potential, (first, second), num_draws=1))
    if draws is not None:
        assert draws.particles.shape == (2, 1, 1)


@anything
@given(
    st.one_of(
        tensors(), st.tuples(tensors(), tensors()), NUMBERS, tensors(st.sampled_from([(2, 3)]))
    ),
    st.dictionaries(st.sampled_from(["thin", "chunk_size", "batch_size", "seed"]), COUNTS),
    st.one_of(st.just(()), st.tuples(NUMBERS)),
)
def test_predict_anything(inputs, options, quantiles):
    found = ours_or_right(lambda: DRAWS.predict(inputs, quantiles=quantiles, **options))
    if found is not None:
        assert torch.isfinite(found.mean).all()
        assert (found.std >= found.epistemic_std - 1e-6).all()
        assert len(found.mean) == len(inputs[0] if isinstance(inputs, tuple) else inputs)


@anything
@given(
    st.one_of(
        st.sampled_from(["tensor", "layer", "neuron", "parameter", "", "random"]),
        st.tuples(st.just("random"), COUNTS),
        tensors(),
        tensors(st.sampled_from([(7,)])),
        st.lists(NUMBERS, max_size=3).map(tuple),
        NUMBERS,
    ),
    COUNTS,
)
def test_groups_of_any_kind(rule, seed):
    layout = Layout({"a.w": (2, 2), "a.b": (2,), "s": ()})
    groups = ours_or_right(lambda: layout.groups(rule, seed))
    if groups is not None:
        assert groups.shape == (7,)
        assert torch.equal(groups.unique(), torch.arange(int(groups.max()) + 1))


MAKERS = {
    "constant": pvi.schedules.constant,
    "polynomial": pvi.schedules.polynomial,
    "cosine": pvi.schedules.cosine,
    "cyclical": pvi.schedules.cyclical,
}


@anything
@given(st.sampled_from(list(MAKERS)), st.lists(NUMBERS, min_size=1, max_size=3))
def test_schedules_of_anything(name, arguments):
    arguments = arguments[: {"constant": 1}.get(name, 3)]
    if name in ("cosine", "cyclical") and len(arguments) < 2:
        arguments = [*arguments, 10]
    schedule = ours_or_right(lambda: MAKERS[name](*arguments))
    if schedule is not None:
        for step in (0, 1, 7, 10**6):
            assert math.isfinite(schedule(step))
            assert schedule(step) >= 0


LAWS = [pvi.Gaussian, pvi.StudentT, pvi.Normal, pvi.Laplace, pvi.kernels.rbf, pvi.kernels.fixed]


@anything
@given(
    st.sampled_from(LAWS),
    st.one_of(
        NUMBERS, tensors(), st.lists(NUMBERS, max_size=3), st.dictionaries(st.text(), NUMBERS)
    ),
)
def test_laws_with_any_scale(law, scale):
    made = ours_or_right(lambda: law(scale))
    if isinstance(made, (pvi.Normal, pvi.Laplace)) and not isinstance(scale, dict):
        value = made.elementwise(torch.tensor(float(made.scale), dtype=torch.float64)).variance
        assert value >= 0


@anything
@given(st.sampled_from([pvi.sgd, pvi.sgld, pvi.psgld, pvi.sghmc]), st.lists(NUMBERS, max_size=3))
def test_samplers_with_any_arguments(factory, arguments):
    limit = {pvi.sgd: 1, pvi.sgld: 1}.get(factory, 3)
    sampler = ours_or_right(lambda: factory(NORMAL, *arguments[:limit]))
    if sampler is not None:
        ours_or_right(lambda: run(sampler=lambda _: sampler, num_draws=1))


ROOMS = ["comparison", "diagnostics", "gradients", "kernels", "noise", "optim", "plots", "running",
         "schedules", "sgdvi", "storage", "testing", "tuning"]  # fmt: skip


def test_every_public_callable_is_tried():
    """A new name is one line in ``tests/calls``, or stands among the results."""
    tried = {call.function for call in CALLS.values()}
    missing = []
    for room in [pvi, *(getattr(pvi, name) for name in ROOMS)]:
        for name in set(room.__all__) - set(RESULTS.get(room, ())):
            value = getattr(room, name)
            own = getattr(value, "__module__", "").startswith("particlevi")
            error = inspect.isclass(value) and issubclass(value, (Exception, Warning))
            room_of = f"{room.__name__}.{name}".removeprefix("particlevi.")
            if callable(value) and own and not error and room_of not in TOO_LONG:
                missing += [] if value in tried else [room_of]
    assert not missing


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_that_are_replaced_are_right(name):
    if name == "optim.Processes":  # right in a program of several processes only
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CALLS[name]()


FLAGS = [
    (name, flag)
    for name, call in CALLS.items()
    for flag, parameter in inspect.signature(call.function).parameters.items()
    if "bool" in str(parameter.annotation) and flag in call.arguments()
]


@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_a_flag_is_true_or_false(name, flag):
    """Nothing that only counts as true is taken for it."""
    for bad in (1, "yes", torch.ones(2, dtype=torch.bool)):
        with pytest.raises((TypeError, ValueError), match=flag):
            CALLS[name](**{flag: bad})


quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def attacked(number):
    """How often each thing happened in so many calls."""
    found: Counter[str] = Counter()

    @settings(max_examples=number, derandomize=True, phases=[Phase.generate], **quiet)
    @given(any_call())
    def run(call):
        found[outcome(*call)] += 1

    run()
    return found


def test_calls_of_anything_public():
    assert set(attacked(400)) <= {"answer", "error of ours"}


@pytest.mark.slow
def test_twenty_thousand_calls():
    """No obscure error; the rate of answers is printed with ``-s``."""
    found = attacked(20_000)
    for kind, count in found.most_common():
        print(count, kind)
    assert set(found) <= {"answer", "error of ours"}
