from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest
import torch

import particlevi as pvi
from particlevi import plots, sgdvi
from particlevi.diagnostics.temperatures import chi_square_interval
from particlevi.potentials.layout import Layout
from tests.comparison.test_comparison import exact_draws, regression
from tests.sgdvi import double_well
from tests.stationarity.laws import quadratic, random_hessian


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def runs():
    return double_well.simulate(1.5, 200, draws=150, thin=1, step=0.05)


def curve(axes, label):
    (line,) = [each for each in axes.lines if label in str(each.get_label())]
    return torch.as_tensor(line.get_ydata())


def test_spectrum_shows_eigenvalues_and_threshold():
    model, data = regression()
    noise = pvi.noise.measure(model, data, position=torch.zeros(2))
    found = noise.spectrum()
    axes = plots.spectrum(found)
    assert torch.allclose(torch.as_tensor(axes.lines[0].get_ydata()), found.eigenvalues)
    assert axes.lines[1].get_ydata()[0] == found.threshold()
    assert "2 of 2 above" in axes.texts[0].get_text()


def test_potential_against_loss(runs):
    phi = sgdvi.fit_potential(runs, 1.0, num_centers=30, num_bootstrap=5)
    points = sgdvi.line(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    found = sgdvi.compare_potentials(points, phi, lambda x: x.square().sum(-1))
    axes = plots.potential_against_loss(found)
    assert torch.allclose(curve(axes, "Phi"), found.potential)
    assert torch.allclose(curve(axes, "loss"), found.potential - found.disagreement)
    assert len(axes.collections) == 1
    corners = torch.eye(2)
    square = sgdvi.plane(torch.zeros(2), corners[0], corners[1], num=5)
    both = plots.potential_against_loss(
        sgdvi.compare_potentials(square, phi, lambda x: x.square().sum(-1))
    )
    assert len(both) == 2
    with pytest.raises(ValueError, match="line or a plane"):
        plots.potential_against_loss(
            sgdvi.compare_potentials(square[None], phi, lambda x: x.square().sum(-1))
        )


def test_current_has_an_arrow_per_cell(runs):
    found = sgdvi.probability_current(runs, 0.05, torch.eye(2), num_grid=6)
    axes = plots.current(found)
    assert sum(len(each.U) for each in axes.collections[1:]) == 36


def test_lag_covariance_loops(runs):
    axes = plots.lag_covariance_loops(runs, max_lag=20)
    forward, backward = (curve(axes, label) for label in ("x0(t)", "x1(t)"))
    found = sgdvi.circulation(runs, 1.0, lag=3)
    assert float(forward[3] - backward[3]) == pytest.approx(3 * float(found.rates[0, 1]), rel=0.02)
    with pytest.raises(ValueError, match="max_lag"):
        plots.lag_covariance_loops(runs, max_lag=150)


def test_reversible_null_stands_beside_both_curves(runs):
    found = sgdvi.spectra(runs, num_frequencies=16, max_lag=20)
    for axes, null in zip(
        plots.reversible_null(found), (found.null_power, found.null_autocorrelation), strict=True
    ):
        assert torch.allclose(curve(axes, "reversible"), null)


def test_effective_temperature():
    model, data = regression()
    sets = {"hot": exact_draws(model, data, 4.0), "posterior": exact_draws(model, data)}
    found = pvi.compare(sets, data, train_data=data)
    axes = plots.effective_temperature(found)
    assert torch.allclose(curve(axes, "hot"), found.temperatures["hot"])
    with pytest.raises(ValueError, match="train_data"):
        plots.effective_temperature(pvi.compare(sets, data))


def test_temperatures():
    target = quadratic(random_hessian(60, 0.5, 2.0, seed=1))
    target = replace(target, layout=Layout({"weight": (5, 10), "bias": (10,)}))
    run = {"step_size": 0.5, "num_particles": 20, "num_warmup": 50, "progress": False}
    draws = pvi.sample(pvi.sghmc(target, temperature=2.0), num_draws=20, thin=4, **run)
    found = draws.temperatures()
    axes = plots.temperatures(draws)
    of_tensors = ["", "[weight]", "[bias]"]
    names = [kind + each for kind in ("kinetic", "configurational") for each in of_tensors]
    assert [each.get_text() for each in axes.get_yticklabels()] == names
    points, _, (bars,) = axes.containers[-1]
    assert list(points.get_xdata()) == [each.mean for each in found.values()]
    for segment, each in zip(bars.get_segments(), found.values(), strict=True):
        assert segment[1, 0] - segment[0, 0] == pytest.approx(4 * each.mcse)
    low, high = chi_square_interval(2.0, 10)
    last = axes.patches[-1]
    assert (last.get_x(), last.get_x() + last.get_width()) == pytest.approx((low, high))
    assert axes.texts[0].get_text() == f"{found['kinetic'].inside:.1%}"
    assert "set to 2" in axes.get_title()
    ladder = pvi.sample(pvi.parallel_tempering(target), num_draws=8, **run)
    assert plots.temperatures(ladder, axes=axes) is axes
    levels = torch.tensor([1.0, 2.0, 4.0, 8.0, 1.0], dtype=torch.float64).view(5, 1).expand(5, 8)
    mixed = replace(ladder, stats={**ladder.stats, "replica_temperature": levels})
    with pytest.raises(ValueError, match=r"from 1 to 8.*draws\.select"):
        plots.temperatures(mixed)


def test_given_axes_are_used(runs):
    _, axes = plt.subplots()
    found = sgdvi.probability_current(runs, 0.05, torch.eye(2), num_grid=4)
    assert plots.current(found, axes) is axes
