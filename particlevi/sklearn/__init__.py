"""Bayesian nets as estimators of scikit-learn. ``pip install particlevi[sklearn]``."""

from particlevi.sklearn.classification import BayesianMLPClassifier
from particlevi.sklearn.estimator import PosteriorWarning
from particlevi.sklearn.regression import BayesianMLPRegressor

__all__ = ["BayesianMLPClassifier", "BayesianMLPRegressor", "PosteriorWarning"]
