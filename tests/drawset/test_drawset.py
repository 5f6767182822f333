"""Draws as data: they are picked, joined, made and refused by their axes."""

from __future__ import annotations

import pickle

import pytest
import torch

import particlevi as pvi
from particlevi.drawset import DrawSet
from particlevi.sgdvi.swag import iterate_average, swag
from particlevi.typing import Facts

P, T, D = 4, 10, 3


@pytest.fixture
def draws():
    particles = torch.arange(float(P * T * D)).view(P, T, D)
    stats = {"step": torch.arange(float(T)), "potential": torch.arange(float(P * T)).view(P, T)}
    return pvi.Draws(particles, stats, chains=[0, 2, 3, 5], end=particles[:, -1] + 1)


@pytest.mark.parametrize(
    "index", [slice(1, 3), [3, 0], torch.tensor([2]), torch.tensor([True, False, True, False])]
)
def test_chains_are_picked_with_their_statistics(draws, index):
    some = draws[index]
    assert torch.equal(some.particles, draws.particles[index])
    assert torch.equal(some.stats["potential"], draws.stats["potential"][index])
    assert torch.equal(some.stats["step"], draws.stats["step"])
    assert some.chains == torch.tensor([0, 2, 3, 5])[index].tolist()


@pytest.mark.parametrize("times", [slice(4, None), slice(None, None, 3), [9, 1]])
def test_draws_are_picked_with_their_statistics(draws, times):
    some = draws[1:, times]
    assert torch.equal(some.particles, draws.particles[1:, times])
    assert torch.equal(some.stats["potential"], draws.stats["potential"][1:, times])
    assert torch.equal(some.stats["step"], draws.stats["step"][times])


def test_a_number_leaves_both_axes(draws):
    assert draws[-1].particles.shape == (1, T, D)
    assert draws[:, -1].particles.shape == (P, 1, D)
    assert torch.equal(draws[2, 5].particles[0, 0], draws.particles[2, 5])


def test_slices_share_memory(draws):
    assert draws[:, 5:].particles.data_ptr() == draws.particles[:, 5:].data_ptr()


def test_length_and_iteration_are_over_chains(draws):
    assert len(draws) == P
    assert [chain.chains for chain in draws] == [[0], [2], [3], [5]]
    assert torch.equal(torch.cat([chain.particles for chain in draws]), draws.particles)


@pytest.mark.parametrize("index", [4, -5, [0, 4], (0, 10), "0", 0.5, (0, 0, 0)])
def test_places_that_are_not_there_are_refused(draws, index):
    with pytest.raises(IndexError):
        draws[index]


def test_thinning_keeps_the_last_draw(draws):
    assert draws.thin(4).stats["step"].tolist() == [1, 5, 9]
    assert torch.equal(draws.thin(1).particles, draws.particles)


def test_halves_joined_are_the_draws(draws):
    joined = pvi.Draws.concat([draws[:, :4], draws[:, 4:]])
    assert torch.equal(joined.particles, draws.particles)
    assert all(torch.equal(joined.stats[name], draws.stats[name]) for name in draws.stats)
    assert torch.equal(joined.last(), draws.end)


def test_chains_joined_are_the_draws(draws):
    joined = pvi.Draws.concat([draws[:1], draws[1:]], along="chains")
    assert torch.equal(joined.particles, draws.particles)
    assert torch.equal(joined.stats["step"], draws.stats["step"])
    assert joined.chains == draws.chains


def test_statistics_that_differ_between_joined_chains_become_per_chain(draws):
    later = pvi.Draws(draws.particles, {"step": draws.stats["step"] + 1})
    joined = pvi.Draws.concat([draws, later], along="chains")
    assert joined.stats["step"].shape == (2 * P, T)
    assert joined.stats["step"][P, 0] == 1


def test_parts_that_do_not_fit_are_refused(draws):
    with pytest.raises(ValueError, match="at least one"):
        pvi.Draws.concat([])
    with pytest.raises(ValueError, match="agree in all other"):
        pvi.Draws.concat([draws, draws[1:]])
    with pytest.raises(ValueError, match="one kind"):
        other = pvi.Draws(draws.particles, facts=Facts(kind="particles"))
        pvi.Draws.concat([draws, other])


def test_the_end_belongs_to_all_chains_and_the_last_draw(draws):
    assert torch.equal(draws.last(), draws.end)
    assert torch.equal(draws[1:].last(), draws.particles[1:, -1])
    assert torch.equal(draws[:, :5].last(), draws.particles[:, 4])


@pytest.mark.parametrize(
    ("kind", "count"), [("chains", P * T), ("ensemble", P * T), ("independent", P * T),
                        ("particles", P)],
)  # fmt: skip
def test_the_sample_is_all_draws_or_the_last_states(draws, kind, count):
    some = pvi.Draws.from_tensor(draws.particles, kind=kind)
    assert some.flat().shape == (count, D)
    assert some.interacting == (kind in ("ensemble", "particles"))


def test_a_wrong_width_is_refused_at_once():
    model = pvi.from_log_density(lambda x: -x.square().sum(), 2)
    with pytest.raises(ValueError, match=r"\[P, T, 2\], for the potential's parameters"):
        pvi.Draws(torch.zeros(4, 10, 3), potential=model)
    with pytest.raises(ValueError, match="for the coordinates kept"):
        pvi.Draws(torch.zeros(4, 10, 3), coordinates=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\[P, T, 6\], for outputs"):
        pvi.Draws(torch.zeros(4, 10, 3), output_shape=(3, 2))


@pytest.mark.parametrize("particles", [torch.zeros(3, 2), torch.zeros(2, 3, 4, dtype=torch.long)])
def test_particles_of_another_kind_are_refused(particles):
    with pytest.raises(ValueError, match="particles must be"):
        pvi.Draws(particles)


def test_statistics_of_another_length_are_refused():
    with pytest.raises(ValueError, match="'potential' must be"):
        pvi.Draws(torch.zeros(4, 10, 3), {"potential": torch.zeros(4)})


def test_iterates_of_a_trained_net_are_draws():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    with torch.no_grad():
        net(torch.randn(50, 2))
    net.eval()
    model = pvi.from_module(net, pvi.Gaussian(0.1), pvi.Normal(1.0), num_data=10)
    x = torch.randn(5, 2)
    draws = pvi.Draws.from_state_dicts(model, [net.state_dict()] * 4)
    assert draws.particles.shape == (1, 4, model.num_params)
    torch.testing.assert_close(draws.predict(x).mean, net(x).detach())
    chains = pvi.Draws.from_state_dicts(model, [[net.state_dict()] * 4] * 2, kind="independent")
    assert chains.particles.shape == (2, 4, model.num_params)
    with pytest.raises(ValueError, match=r"lacks \['2.bias'\]"):
        pvi.Draws.from_state_dicts(
            model, [{k: v for k, v in net.state_dict().items() if k != "2.bias"}]
        )


def test_swag_takes_iterates_from_elsewhere():
    iterates = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model = pvi.from_log_density(lambda x: -x.square().sum(), 3)
    found = swag(pvi.Draws.from_tensor(iterates, model), num_draws=7)
    assert found.particles.shape == (1, 7, 3)
    assert found.facts.kind == "independent"
    averages = iterate_average(pvi.Draws.from_tensor(iterates), window=5)
    torch.testing.assert_close(averages.particles[0, -1], iterates[-5:].mean(0))


def test_what_is_missing_is_named():
    shapes = {"0.weight": (2, 2), "8.weight": (3,), "8.bias": (2,)}
    draws = pvi.Draws(torch.zeros(2, 5, 4), coordinates=torch.tensor([4, 5, 6, 7]), shapes=shapes)
    with pytest.raises(ValueError, match=r"nothing was kept of \['0.weight'\], a part of \['8.b"):
        draws.parameters()


def test_files_keep_all_of_it(draws, tmp_path):
    facts = Facts(kind="ensemble", kinetic="held", thermostat=2.0)
    whole = pvi.Draws(
        draws.particles,
        draws.stats,
        facts=facts,
        gradients=8.0,
        minibatch=True,
        groups=torch.tensor([0, 1, 1]),
        pooled=True,
        metric=torch.ones(3),
        end=draws.end,
    )
    whole.save(tmp_path / "draws")
    again = pvi.load(tmp_path / "draws")
    assert type(again) is pvi.Draws
    for name in ("facts", "gradients", "minibatch", "pooled"):
        assert getattr(again, name) == getattr(whole, name)
    for name in ("particles", "groups", "metric", "end"):
        assert torch.equal(getattr(again, name), getattr(whole, name))


def test_a_pickle_leaves_the_potential_behind():
    model = pvi.from_log_density(lambda x: -x.square().sum(), 3)
    draws = pvi.Draws(torch.zeros(2, 5, 3), potential=model)
    assert pickle.loads(pickle.dumps(draws)).potential is None


def test_a_run_of_replicas_goes_on_with_all_of_them():
    target = pvi.from_log_density(lambda x: -x.square().sum(-1), 2, vectorized=True)
    tempered = pvi.parallel_tempering(target, [1.0, 4.0])
    run = {"step_size": 0.2, "num_draws": 3, "progress": False}
    first = pvi.sample(tempered, num_particles=4, **run)
    assert first.particles.shape[0] == 2
    assert first.last().shape == (4, 2)
    again = pvi.sample(tempered, initial=first, **run)
    assert again.last().shape == (4, 2)
    assert len(pvi.Draws.concat([first, again])) == 2


def test_negative_numbers_count_from_the_end():
    draws = DrawSet(torch.arange(12.0).view(4, 3, 1))
    assert torch.equal(draws[[-1, 0]].particles, draws.particles[[3, 0]])


@pytest.mark.parametrize(
    "ask", [lambda d: d.constrained(), lambda d: d.flat(), lambda d: d.predict(torch.ones(2, 3))]
)
def test_a_run_without_a_draw_says_how_to_get_some(ask):
    model = pvi.from_module(torch.nn.Linear(3, 1), pvi.Gaussian("learned"), pvi.Normal(1.0), 8)
    draws = pvi.Draws.from_tensor(torch.empty(4, 0, model.num_params), model)
    with pytest.raises(ValueError, match="max_seconds"):
        ask(draws)


def test_what_was_given_is_not_told_at_length():
    weights = {f"layer{k}.weight": torch.randn(9, 9) for k in range(20)}
    model = pvi.from_module(torch.nn.Linear(3, 1), pvi.Gaussian(1.0), pvi.Normal(1.0), 8)
    with pytest.raises(TypeError, match="a list of the module's state_dicts") as caught:
        pvi.Draws.from_state_dicts(model, weights)
    assert len(str(caught.value)) < 400
