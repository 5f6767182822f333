"""Gaussianity of noise: the statistics against scipy, the level and the power of the tests."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import particlevi as pvi
from particlevi.noise.gaussianity import anderson_darling, shapiro_wilk

SMALL = {"num_directions": 8, "num_bootstrap": 59}


def net_and_data(num_data=300):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    x = torch.randn(num_data, 6)
    return net, (x, torch.randint(3, (num_data,)))


def measured(batch_size=32, **options):
    net, data = net_and_data()
    return pvi.noise.measure(
        net, data, nn.functional.cross_entropy, batch_size=batch_size, **options
    )


def covariance_root():
    """A root of the noise covariance of a net, ``[D, D]``."""
    eigenvalues, vectors = np.linalg.eigh(measured().dense().numpy())
    return vectors * np.sqrt(eigenvalues.clip(0))


@pytest.mark.parametrize("size", [20, 101, 1000])
def test_statistics_are_those_of_scipy(size):
    x = np.sort(np.random.default_rng(size).exponential(size=(size, 2)), axis=0)
    for column, w, a in zip(x.T, shapiro_wilk(x), anderson_darling(x), strict=True):
        assert w == pytest.approx(stats.shapiro(column).statistic, abs=1e-8)
        expected = stats.anderson(column, "norm", method="interpolate").statistic
        assert a == pytest.approx(expected, rel=1e-9)


def p_values(draw, count, seed=0, **options):
    rng = np.random.default_rng(seed)
    found = [pvi.noise.gaussianity(draw(rng), seed=i, **options) for i in range(count)]
    return np.array([f.p_value for f in found]), found


def test_reference_values_under_gaussian_noise():
    x = np.sort(np.random.default_rng(0).standard_normal((500, 4000)), axis=0)
    assert shapiro_wilk(x).mean() == pytest.approx(0.9968, abs=1e-4)
    assert anderson_darling(x).mean() == pytest.approx(0.375, abs=0.01)


def test_level_on_the_covariance_of_a_net():
    root = covariance_root()
    draw = lambda rng: rng.standard_normal((60, len(root))) @ root.T  # noqa: E731
    p, _ = p_values(draw, 100, **SMALL)
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.slow
def test_level_is_five_percent_within_two():
    root = covariance_root()
    draw = lambda rng: rng.standard_normal((100, len(root))) @ root.T  # noqa: E731
    p, found = p_values(draw, 1000, **SMALL)
    assert abs((p <= 0.05).mean() - 0.05) <= 0.02
    for family in ("random", "coordinates", "eigenvectors"):
        for test in ("shapiro_p", "anderson_p"):
            each = np.array([getattr(f.families[family], test) for f in found])
            assert abs((each <= 0.05).mean() - 0.05) <= 0.02, (family, test)


def test_power_on_a_rank_one_student_t():
    draw = lambda rng: rng.standard_t(3, (200, 1)) * rng.standard_normal(40)  # noqa: E731
    p, found = p_values(draw, 25, **SMALL)
    assert (p <= 0.05).mean() > 0.8
    for family in found[0].families:
        each = [(f.families[family].shapiro_p, f.families[family].anderson_p) for f in found]
        assert ((np.array(each) <= 0.05).mean(0) > 0.8).all(), family


def test_coordinates_see_what_random_projections_average_away():
    x = np.random.default_rng(0).standard_t(3, (200, 500))
    families = pvi.noise.gaussianity(x, **SMALL).families
    assert families["coordinates"].shapiro < families["random"].shapiro - 0.03


def test_minibatch_means_become_gaussian_as_batches_grow():
    rng = np.random.default_rng(0)
    w = []
    for b in (1, 8, 64, 512):
        x = rng.gamma(b, 1 / b, (500, 40))  # the law of a mean of b exponential numbers
        w.append(pvi.noise.gaussianity(x, **SMALL).families["coordinates"].shapiro)
    assert w == sorted(w)
    assert 0.9958 < w[-1] < 0.9970, w


def test_of_a_net_small_batches_are_less_gaussian_than_large_ones():
    small, large = (measured(b).gaussianity(300, **SMALL) for b in (1, 150))
    assert small.p_value == pytest.approx(1 / 60)
    assert small.families["coordinates"].shapiro < large.families["coordinates"].shapiro


def test_minibatches_have_the_covariance_of_their_kind():
    values = np.random.default_rng(1).standard_normal((40, 2)) ** 3
    c = np.cov(values.T, bias=True)
    from particlevi.noise.samples import batch_means

    for subset, factor in ((False, 1 / 10), (True, 30 / 39 / 10)):
        drawn = batch_means(values, 10, 4000, subset, np.random.default_rng(2))
        squared = drawn[:, 0] ** 2
        z = (squared.mean() - c[0, 0] * factor) / (squared.std() / 4000**0.5)
        assert abs(z) < 4


def test_the_seed_decides():
    x = np.random.default_rng(0).standard_normal((50, 5))
    first, second = (pvi.noise.gaussianity(x, **SMALL) for _ in range(2))
    assert (first.p_value, str(first)) == (second.p_value, str(second))
    assert "Gaussian" in str(first)


def test_constant_coordinates_are_left_out_and_counted():
    x = np.random.default_rng(0).standard_normal((50, 5))
    x[:, [1, 3]] = 0.0
    assert pvi.noise.gaussianity(x, **SMALL).num_constant == 2


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 5)), "at least 20"),
        (np.zeros((100, 5)), "constant in all 5"),
        (np.zeros((5001, 2)), "at most 5000"),
        (np.full((100, 5), np.nan), "must be finite"),
        (np.zeros((30, 2, 2)), r"noise vectors \[M, K\]"),
    ],
)
def test_bad_samples(samples, message):
    for given in (samples, torch.from_numpy(samples)):
        with pytest.raises(ValueError, match=message):
            pvi.noise.gaussianity(given)


def test_bad_noise():
    with pytest.raises(TypeError, match="tensor or array"):
        pvi.noise.gaussianity([1.0, 2.0])
    with pytest.raises(ValueError, match="Give batch_size"):
        measured(None).gaussianity()
    with pytest.raises(ValueError, match="at most 5000, got 6000"):
        measured().gaussianity(6000)
    with pytest.raises(ValueError, match="at least 20"):
        measured().gaussianity(1)
    with pytest.raises(ValueError, match="has no noise"):
        measured(300).gaussianity(batching="subset")
    with pytest.raises(ValueError, match="at most the 300 data"):
        measured(301)
    noise = measured()
    with torch.no_grad():
        noise.position.fill_(float("nan"))
    for test in (noise.tail_index, noise.gaussianity):
        with pytest.raises(ValueError, match="finite"):
            test()


def test_quantiles_of_gaussian_noise_lie_in_the_band_as_often_as_it_says():
    root = covariance_root()
    draw = lambda rng: rng.standard_normal((60, len(root))) @ root.T  # noqa: E731
    _, found = p_values(draw, 40, **SMALL)
    tests = [test for f in found for test in f.families.values()]
    inside = [((t.ordered >= t.ordered_null[0]) & (t.ordered <= t.ordered_null[1])) for t in tests]
    assert np.mean([i.mean() for i in inside]) == pytest.approx(0.95, abs=0.04)


def test_a_heavy_tail_leaves_the_band_of_quantiles_at_both_ends():
    samples = np.random.default_rng(0).standard_t(3, size=(200, 5))
    found = pvi.noise.gaussianity(samples, **SMALL).families["coordinates"]
    assert found.ordered[0] < found.ordered_null[0, 0]
    assert found.ordered[-1] > found.ordered_null[1, -1]
