"""Conjugate Gaussians whose minibatch noise is correlated, and the exact laws of their samplers.

``x_n ~ N(theta, A^-1)`` with a flat prior: the potential has the Hessian ``N A``, and a batch of B
independent data the noise covariance ``(N^2 / B) A C A`` with the covariance C of the data.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov

import particlevi as pvi


def data_with_covariance(size, covariance, seed=0):
    """``[N, D]`` of mean 0 and exactly that covariance (divisor N)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, len(covariance), generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    root = torch.linalg.cholesky(x.mT @ x / size)
    white = torch.linalg.solve_triangular(root, x.mT, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).mT.contiguous()


def conjugate(size, precision):
    """A potential with the Hessian ``size * precision``, ``[D, D]``."""

    def log_likelihood(theta, x):
        away = x - theta.unsqueeze(1)
        return -0.5 * ((away @ precision) * away).sum(-1)

    return pvi.from_log_likelihood(
        lambda theta: 0 * theta.sum(-1),
        log_likelihood,
        len(precision),
        size,
        vectorized=True,
        dtype=torch.float64,
    )


def baoa_law(hessian, noise, h, friction, taken=None):
    """Stationary covariance ``[2 D, 2 D]`` of (theta, p) with gradient noise, at T = 1.

    ``taken [D]`` is the variance that the sampler takes out of what it injects.
    """
    size, c = len(hessian), math.exp(-friction * h)
    eye, zero = np.eye(size), np.zeros((size, size))
    kick = np.block([[eye, zero], [-h * hessian, eye]])
    drift = np.block([[eye, 0.5 * h * eye], [zero, eye]])
    decay = np.block([[eye, zero], [zero, c * eye]])
    step = drift @ decay @ drift @ kick
    of_kick = drift @ decay @ drift @ np.block([[zero], [-h * eye]])
    injected = (1 - c**2) * np.ones(size)
    if taken is not None:
        injected = injected - (0.5 * (1 + c) * h) ** 2 * taken
    assert (injected > 0).all()
    of_bath = drift @ np.block([[zero], [eye]])
    source = of_kick @ noise @ of_kick.T + of_bath @ np.diag(injected) @ of_bath.T
    return solve_discrete_lyapunov(step, source)
