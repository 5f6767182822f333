import dataclasses
import math

import pytest
import torch

import particlevi as pvi
from particlevi.comparison import Estimate, Score, Setting, default_scores
from particlevi.comparison.temperature_score import _center
from particlevi.curvature import dense_hessian, potential_energy
from particlevi.data import as_data
from particlevi.diagnostics import calibration

N = 60


def regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + 0.5 * torch.randn(N, 1, generator=generator, dtype=x.dtype)
    net = torch.nn.Linear(2, 1, bias=False).double()
    return pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(10.0), num_data=N), (x, y)


def exact_draws(model, data, temperature=1.0, seed=0, shift=0.0):
    """Independent draws of the posterior, or of it at another temperature, as Draws."""
    x, y = data
    precision = x.T @ x / 0.25 + torch.eye(2).double() / 100
    mean = torch.linalg.solve(precision, x.T @ y[:, 0] / 0.25)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, 500, 2, generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    return pvi.Draws(
        particles=mean + shift + temperature**0.5 * z @ root.T,
        stats={},
        seconds=2.0,
        potential=model,
        fingerprint=dict(model.fingerprint),
        attrs={"sampler": "exact"},
    )


def test_effective_temperatures_and_distances():
    model, data = regression()
    found = pvi.compare(
        {
            "hot": exact_draws(model, data, 4.0, seed=1),
            "same": exact_draws(model, data, 1.0, seed=2),
            "posterior": exact_draws(model, data),
        },
        data,
        train_data=data,
    )
    # 1996 degrees of freedom: a standard error of 3 % each.
    assert torch.allclose(found.temperatures["hot"], torch.tensor(4.0).double(), rtol=0.16)
    assert torch.allclose(found.temperatures["same"], torch.tensor(1.0).double(), rtol=0.16)
    hessian = data[0].T @ data[0] / 0.25 + torch.eye(2).double() / 100
    assert torch.allclose(found.eigenvalues, torch.linalg.eigvalsh(hessian))
    rows = found.rows
    assert rows["hot"]["sliced_wasserstein"] > 5 * rows["same"]["sliced_wasserstein"]
    assert rows["posterior"]["sliced_wasserstein"] is None
    # Sliced Wasserstein of N(0, 4 S) to N(0, S): root of the mean of u' S u, which is tr(S) / D.
    wanted = math.sqrt(float(torch.linalg.inv(hessian).trace()) / 2)
    assert rows["hot"]["sliced_wasserstein"] == pytest.approx(wanted, rel=0.1)
    error = found.errors["hot"]
    assert rows["hot"]["mmd"] > 5 * error["mmd"]
    assert abs(rows["same"]["mmd"]) < 5 * found.errors["same"]["mmd"]
    assert rows["hot"]["ksd"] > 5 * error["ksd"]
    assert rows["posterior"]["mmd"] is None
    assert abs(rows["posterior"]["ksd"]) < 0.2 * rows["hot"]["ksd"]
    assert rows["same"]["ess"] > 1000
    assert rows["same"]["ess_per_second"] == rows["same"]["ess"] / 2.0
    assert rows["same"]["function_distance"] < rows["hot"]["function_distance"] < 0.05
    assert rows["posterior"]["coverage_error"] < 0.1
    # Errors of temperatures: 2/n of a variance over n independent draws, twice of a ratio.
    for name in ("hot", "same"):
        relative = found.temperature_errors[name] / found.temperatures[name]
        assert torch.allclose(relative, torch.tensor((4 / 2000) ** 0.5).double(), rtol=0.5)
    assert (found.temperature_errors["posterior"] == 0).all()
    assert 0.02 < found.errors["same"]["temperature"] < 0.08
    # Sliced Wasserstein: the delta method takes half the error of the square over the root.
    points = [exact_draws(model, data, 4.0, seed=1).flat(), exact_draws(model, data).flat()]
    square = pvi.diagnostics.sliced_wasserstein(*points, 200, 0)
    assert error["sliced_wasserstein"] == pytest.approx(
        square.standard_error / (2 * rows["hot"]["sliced_wasserstein"])
    )
    table, explained = found.table(), found.explain()
    assert explained.count("\n") == 1 + table.split("\n")[0].count("|") - 2
    assert all(
        s.meaning in explained for s in found.scores if s.name in ("nll", "ksd", "temperature")
    )
    assert "nll" in table
    assert "agreement" not in table
    assert table.count("\n") == 4


def test_scores_are_their_formulas():
    model, data = regression()
    draws = exact_draws(model, data)
    found = pvi.compare({"a": exact_draws(model, data, shift=1.0), "b": draws}, data)
    x, y = data
    outputs = draws.particles.flatten(0, 1) @ x.T
    mean = outputs.mean(0)
    rmse = (mean - y[:, 0]).square().mean().sqrt()
    row = found.rows["b"]
    assert row["rmse"] == pytest.approx(float(rmse))
    assert row["accuracy"] is None
    density = torch.distributions.Normal(outputs, 0.5).log_prob(y[:, 0]).logsumexp(0)
    nll = -(density - math.log(len(outputs)))
    assert row["nll"] == pytest.approx(float(nll.mean()), rel=1e-6)
    assert found.errors["b"]["nll"] == pytest.approx(float(nll.std()) / N**0.5, rel=1e-6)
    squares = (mean - y[:, 0]).square()
    assert found.errors["b"]["rmse"] == pytest.approx(
        float(squares.std() / N**0.5 / (2 * rmse)), rel=1e-6
    )
    away = (x.sum(1) ** 2).std() / N**0.5 / (2 * found.rows["a"]["function_distance"])
    assert found.errors["a"]["function_distance"] == pytest.approx(float(away), rel=0.1)
    assert 0.005 < found.errors["b"]["coverage_error"] < 0.1
    assert found.rows["a"]["nll"] > row["nll"] + 1
    assert found.rows["a"]["function_distance"] == pytest.approx(
        float(x.sum(1).square().mean().sqrt()), rel=0.05
    )


def test_classification():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    y = x.argmax(1)
    model = pvi.from_module(torch.nn.Linear(3, 3), pvi.Categorical(), pvi.Normal(1.0), num_data=200)
    run = {"num_particles": 2, "num_warmup": 200, "num_draws": 50, "progress": False}
    a = pvi.sample(pvi.sghmc(model), (x, y), step_size=0.05, **run)
    sharp = dataclasses.replace(a, particles=10 * a.particles)
    found = pvi.compare({"sharp": sharp, "sghmc": a}, (x, y), reference="sghmc")
    probs = [d.predict(x).probs.double() for d in (sharp, a)]
    row = found.rows["sharp"]
    same = (probs[0].argmax(1) == probs[1].argmax(1)).double().mean()
    assert row["agreement"] == pytest.approx(float(same))
    assert row["total_variation"] == pytest.approx(
        float((probs[0] - probs[1]).abs().sum(1).mean() / 2), rel=1e-6
    )
    accuracy = (probs[1].argmax(1) == y).double().mean()
    assert found.rows["sghmc"]["accuracy"] == pytest.approx(float(accuracy))
    for binning in ("width", "mass"):
        wanted = calibration.calibration_error(probs[0], y, binning=binning)
        assert row[f"ece_{binning}"] == pytest.approx(wanted, rel=1e-9)
    share = float(same)
    assert found.errors["sharp"]["agreement"] == pytest.approx(
        (share * (1 - share) / 199) ** 0.5, rel=1e-6
    )
    variation = (probs[0] - probs[1]).abs().sum(1) / 2
    assert found.errors["sharp"]["total_variation"] == pytest.approx(
        float(variation.std()) / 200**0.5, rel=1e-6
    )
    assert "temperature" not in found.table()


def test_two_classes_from_one_logit():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=generator)
    y = (x[:, :1] > 0).float()
    model = pvi.from_module(torch.nn.Linear(2, 1), pvi.Bernoulli(), pvi.Normal(3.0), num_data=100)
    run = {"num_particles": 2, "num_warmup": 300, "num_draws": 50, "progress": False}
    a = pvi.sample(pvi.sghmc(model), (x, y), step_size=0.05, **run)
    wrong = dataclasses.replace(a, particles=-a.particles)
    found = pvi.compare({"wrong": wrong, "right": a}, (x, y))
    assert found.rows["right"]["accuracy"] > 0.95
    assert found.rows["wrong"]["accuracy"] < 0.05
    assert found.rows["wrong"]["agreement"] < 0.05
    assert found.rows["wrong"]["ece_width"] > 0.5


def test_hessian_is_taken_where_the_density_is_highest():
    model, data = regression()
    particles = exact_draws(model, data).flat().double()
    far = particles.mean(0) + torch.linspace(1, 9, 32)[:, None]
    far[5] = particles.mean(0)
    # Only those that are looked at: the mean and every second one.
    far = far[[5, *range(31)]]
    setting = Setting(model, data, as_data(data, model), 1, 1500, 0)
    assert torch.allclose(_center(setting, far), particles.mean(0))


def test_hessian_by_finite_differences():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    model = pvi.from_module(net.double(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    data = regression()[1]
    theta = model.init(1)[0]
    hessian = dense_hessian(potential_energy(model, theta, data))
    direction = torch.randn(len(theta), dtype=torch.float64)

    def slope(t):
        gradient = torch.func.grad(lambda p: model(p[None], pvi.typing.Batch(data))[0])
        return gradient(theta + t * direction)

    step = 1e-5
    wanted = (slope(step) - slope(-step)) / (2 * step)
    assert torch.allclose(hessian @ direction, wanted, rtol=1e-5, atol=1e-5)


def test_particles_that_interact_have_no_ess_and_no_temperature():
    model, data = regression()
    stein = pvi.sample(
        pvi.svgd(model), data, step_size=1e-3, num_particles=10, num_draws=5, progress=False
    )
    found = pvi.compare(
        {"svgd": stein, "posterior": exact_draws(model, data)}, data, train_data=data
    )
    assert found.rows["svgd"]["ess"] is None
    assert found.rows["svgd"]["temperature"] is None
    assert found.rows["svgd"]["draws"] == 10
    # Without chains to refer to, the posterior's variance is the inverse curvature.
    other = pvi.compare(
        {"svgd": stein, "posterior": exact_draws(model, data)},
        data,
        reference="svgd",
        train_data=data,
    )
    assert torch.allclose(other.temperatures["posterior"], torch.tensor(1.0).double(), rtol=0.16)
    error = other.temperature_errors["posterior"]
    assert torch.allclose(error, torch.tensor((2 / 2000) ** 0.5).double(), rtol=0.5)


def test_bad_input():
    model, data = regression()
    draws = exact_draws(model, data)
    with pytest.raises(ValueError, match="at least two"):
        pvi.compare({"a": draws}, data)
    with pytest.raises(ValueError, match="reference"):
        pvi.compare({"a": draws, "b": draws}, data, reference="c")
    net = torch.nn.Linear(2, 1, bias=False)
    other = pvi.from_module(net, pvi.Gaussian(0.1), pvi.Normal(1.0), num_data=N)
    with pytest.raises(ValueError, match="different potentials"):
        pvi.compare({"a": draws, "b": dataclasses.replace(draws, potential=other)}, data)
    with pytest.raises(ValueError, match="without potential"):
        pvi.compare({"a": draws, "b": dataclasses.replace(draws, potential=None)}, data)


def test_a_user_adds_a_score():
    model, data = regression()
    sets = {"a": exact_draws(model, data), "b": exact_draws(model, data, seed=1)}

    def spread(subject, reference):
        return Estimate(float(subject.parameters.std()), 0.1 if subject is reference else 0.2)

    mine = Score("spread", "of all numbers", spread)
    found = pvi.compare(sets, data, scores=[*default_scores(), mine])
    assert found.rows["a"]["spread"] == float(sets["a"].flat().std())
    assert (found.rows["a"].error("spread"), found.rows["b"].error("spread")) == (0.2, 0.1)
    assert "| spread |" in found.table() and "of all numbers" in found.explain()
    assert set(pvi.compare(sets, data, scores=[mine]).rows["a"]) == {"spread"}
    with pytest.raises(ValueError, match="different names"):
        pvi.compare(sets, data, scores=[mine, mine])
    with pytest.raises(TypeError, match="Score"):
        pvi.compare(sets, data, scores=["nll"])


def test_every_number_has_an_error():
    model, data = regression()
    sets = {"a": exact_draws(model, data), "b": exact_draws(model, data, seed=1)}
    found = pvi.compare(sets, data, train_data=data)
    for row in found.rows.values():
        for name, estimate in row.estimates.items():
            assert estimate is None or estimate.error >= 0, name


def test_a_hessian_too_large_is_said_to_be_left_out():
    model, data = regression()
    sets = {"a": exact_draws(model, data), "b": exact_draws(model, data, seed=1)}
    found = pvi.compare(sets, data, train_data=data, max_hessian=1)
    assert "temperature is left out: the Hessian of 2 parameters" in found.table()
    assert found.notes[0] in found.explain()
    assert not found.temperatures


def test_a_discrepancy_that_ranks_nothing_is_left_out_and_said_so():
    model, data = regression()
    sets = {"a": exact_draws(model, data), "b": exact_draws(model, data, seed=1)}
    found = pvi.compare(sets, data, train_data=data)
    assert found.rows["a"]["ksd"] is None
    assert "ksd is left out" in found.table()


def test_the_stein_discrepancy_does_not_depend_on_units():
    """A coordinate that is a thousand times wider counts as before."""
    model, (x, y) = regression()
    found = []
    for scale in (1.0, 1e-3):
        data = (x * torch.tensor([1.0, scale], dtype=torch.float64), y)
        sets = {
            "hot": exact_draws(model, data, 4.0, seed=1),
            "posterior": exact_draws(model, data),
        }
        found.append(pvi.compare(sets, data, train_data=data).rows["hot"]["ksd"])
    # The prior has a share in the wide coordinate, so that the two laws differ a little.
    assert found[0] == pytest.approx(found[1], rel=0.5)


def test_epistemic_std_is_that_of_the_mean():
    model, data = regression()
    draws = exact_draws(model, data)
    narrow = dataclasses.replace(draws, particles=draws.particles.mean((0, 1)).expand(4, 500, 2))
    found = pvi.compare({"narrow": narrow, "draws": draws}, data)
    values = draws.flat() @ data[0].T
    wanted = float(values.var(0, correction=0).mean().sqrt())
    assert found.rows["draws"]["epistemic_std"] == pytest.approx(wanted, rel=1e-9)
    # Relative error of a variance over n independent draws, sqrt(2/n) at most, halved by the root.
    assert found.rows["draws"].error("epistemic_std") < 0.6 * wanted * math.sqrt(2 / 2000)
    assert found.rows["narrow"]["epistemic_std"] < 1e-6


def test_a_loader_will_do():
    model, data = regression()
    sets = {"a": exact_draws(model, data), "b": exact_draws(model, data, seed=1)}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=20)
    wanted = pvi.compare(sets, data, train_data=data)
    found = pvi.compare(sets, loader, train_data=loader)
    for name in ("nll", "rmse", "temperature"):
        assert found.rows["a"][name] == pytest.approx(wanted.rows["a"][name], rel=1e-9)
