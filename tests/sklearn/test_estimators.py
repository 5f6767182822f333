"""The estimators: scikit-learn's own checks, and predictions against definitions."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("sklearn", minversion="1.6", reason="the extra sklearn is missing")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from particlevi.sklearn import BayesianMLPClassifier, BayesianMLPRegressor, PosteriorWarning
from particlevi.sklearn.estimator import merged_rows

QUICK = {"num_chains": 4, "num_warmup": 100, "num_draws": 10, "max_seconds": None}
RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(-2, 2, (80, 2))
Y = np.sin(X[:, 0]) + 0.1 * RANDOM.standard_normal(80)
LABELS = np.where(X[:, 0] + 0.3 * RANDOM.standard_normal(80) > 0, "up", "down")

pytestmark = pytest.mark.filterwarnings("ignore::particlevi.sklearn.PosteriorWarning")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        BayesianMLPRegressor((8,), random_state=0, **QUICK),
        BayesianMLPClassifier((8,), random_state=0, **QUICK),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def regressor():
    with pytest.warns(PosteriorWarning, match="not reached"):
        return BayesianMLPRegressor((6,), random_state=0, **QUICK).fit(X, Y)


@pytest.fixture(scope="module")
def classifier():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosteriorWarning)
        return BayesianMLPClassifier((6,), random_state=0, **QUICK).fit(X, LABELS)


def test_mean_and_spread_are_those_of_the_draws(regressor):
    mean, std = regressor.predict(X, return_std=True)
    scaled = torch.as_tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
    expected = regressor.draws_.predict(scaled)
    np.testing.assert_allclose(mean, Y.mean() + Y.std() * expected.mean[:, 0], atol=1e-4)
    np.testing.assert_allclose(std, Y.std() * expected.std[:, 0], rtol=1e-3)
    assert np.sqrt(np.mean((mean - Y) ** 2)) < 0.3


def test_quantiles_are_where_the_mixture_has_them(regressor):
    (mean, scale), *_ = regressor._components(X[:5])
    found = regressor.predict_quantiles(X[:5], [0.05, 0.5, 0.99])
    for k, level in enumerate([0.05, 0.5, 0.99]):
        reached = stats.norm.cdf(found[:, k], mean, scale).mean(0)
        np.testing.assert_allclose(reached, level, atol=1e-12)
    np.testing.assert_allclose(regressor.predict_interval(X[:5], 0.9)[:, 0], found[:, 0])


def test_the_density_is_that_of_the_mixture(regressor):
    (mean, scale), *_ = regressor._components(X)
    expected = np.log(stats.norm.pdf(Y, mean, scale).mean(0))
    np.testing.assert_allclose(regressor.log_density(X, Y), expected, rtol=1e-9)


def test_new_targets_have_the_law_of_the_mixture(regressor):
    sampled = regressor.sample_y(X[:3], 20000)
    mean, std = regressor.predict(X[:3], return_std=True)
    assert (np.abs(sampled.mean(1) - mean) < 4 * std / np.sqrt(20000)).all()
    np.testing.assert_allclose(sampled.std(1), std, rtol=0.05)
    assert np.array_equal(sampled[:, :5], regressor.sample_y(X[:3], 20000)[:, :5])


def test_labels_and_probabilities(classifier):
    probs = classifier.predict_proba(X)
    scaled = torch.as_tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)
    np.testing.assert_allclose(probs, classifier.draws_.predict(scaled).probs, atol=1e-4)
    assert np.array_equal(classifier.predict(X), classifier.classes_[probs.argmax(1)])
    assert classifier.score(X, LABELS) > 0.85
    shares = (classifier.sample_y(X[:4], 20000) == "up").mean(1)
    assert (np.abs(shares - probs[:4, 1]) < 4 * 0.5 / np.sqrt(20000)).all()
    assert (classifier.mutual_information(X) >= 0).all()


@pytest.mark.parametrize("which", ["regressor", "classifier"])
def test_a_pickle_predicts_the_same_and_has_its_draws(which, request):
    fitted = request.getfixturevalue(which)
    back = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(back.predict(X), fitted.predict(X))
    inputs = torch.zeros(3, 2)
    assert torch.equal(back.draws_.outputs(inputs), fitted.draws_.outputs(inputs))
    assert np.array_equal(copy.deepcopy(fitted).predict(X), fitted.predict(X))


@pytest.mark.slow
def test_rows_of_no_weight_do_not_count():
    net = BayesianMLPRegressor((4,), random_state=0, **QUICK)
    weight = np.r_[np.ones(40), np.zeros(40)]
    first = clone(net).fit(X, Y, sample_weight=weight)
    second = clone(net).fit(X[:40], Y[:40], sample_weight=np.ones(40))
    assert np.array_equal(first.predict(X), second.predict(X))


def test_rows_given_twice_are_rows_of_weight_two():
    order = RANDOM.permutation(160)
    twice = merged_rows(np.r_[X, X][order], np.r_[LABELS, LABELS][order], None)
    weighted = merged_rows(X, LABELS, 2.0 * np.ones(80))
    for one, other in zip(twice, weighted, strict=True):
        assert np.array_equal(one, other)


def test_rows_given_once_have_no_weight():
    inputs, targets, weight = merged_rows(X, Y, np.ones(80))
    assert weight is None
    assert sorted(zip(inputs[:, 0], targets, strict=True)) == sorted(zip(X[:, 0], Y, strict=True))


def test_a_run_that_did_not_converge_has_its_verdict(regressor):
    assert not regressor.verdict_.ok


def test_no_time_gives_the_starts_and_says_so():
    net = BayesianMLPRegressor((6,), random_state=0, num_chains=4, max_seconds=1e-3)
    with pytest.warns(PosteriorWarning, match="before the first draw"):
        fitted = net.fit(X, Y)
    assert fitted.draws_.particles.shape[:2] == (4, 1)
    assert np.isfinite(fitted.predict(X)).all()
    assert not fitted.verdict_.ok


@pytest.mark.parametrize(
    "options",
    [{"hidden_layer_sizes": (0,)}, {"activation": "step"}, {"prior_scale": -1}, {"num_chains": 0}],
)
def test_bad_parameters_are_named_at_fit(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        BayesianMLPRegressor(**options).fit(X, Y)


@pytest.mark.slow
def test_a_pipeline_and_a_grid_search():
    net = BayesianMLPRegressor((4,), random_state=0, **QUICK)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), net),
        {"bayesianmlpregressor__prior_scale": [0.01, 1.0]},
        cv=2,
    )
    search.fit(X, Y)
    assert search.best_params_ == {"bayesianmlpregressor__prior_scale": 1.0}


@pytest.mark.parametrize("seed", [0, 3])
def test_data_without_noise_leave_no_chain_where_rounding_is_all_that_a_tuner_sees(seed):
    """The scale shrinks as training goes on, so that the first step of all is far too long."""
    x = np.linspace(-2, 2, 60)[:, None]
    sizes = {"num_chains": 4, "num_warmup": 200, "num_draws": 10, "max_seconds": None}
    net = BayesianMLPRegressor((8,), random_state=seed, **sizes).fit(x, 2 * x[:, 0])
    assert float(net.draws_.stats["potential"].max()) < 0
