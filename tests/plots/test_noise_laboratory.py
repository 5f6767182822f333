"""Pictures of the noise laboratory show the numbers of their results."""

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

import particlevi as pvi

mpl.use("Agg")
RNG = np.random.default_rng(0)


def test_normality_shows_every_family():
    found = pvi.noise.gaussianity(RNG.standard_normal((60, 4)), num_bootstrap=19)
    axes = pvi.plots.normality(found)
    lines = [line.get_ydata() for line in axes.lines[: len(found.families)]]
    for shown, test in zip(lines, found.families.values(), strict=True):
        assert list(shown) == list(test.ordered)


def test_tails_show_the_interval_and_the_null():
    found = pvi.noise.tail_index(RNG.standard_normal((100, 4)), num_null=19)
    axes = pvi.plots.tails(found)
    assert [line.get_ydata()[0] for line in axes.lines[:3]] == [
        found.alpha,
        found.standardised,
        found.pooled,
    ]
    assert list(axes.lines[3].get_ydata()) == list(found.interval)
    assert axes.patches[0].get_y() == np.quantile(found.null, 0.025)


def test_balance_shows_the_ratio_and_where_it_would_rest():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x = torch.randn(20, 2)
    noise = pvi.noise.measure(net, (x, x[:, :1]), nn.functional.mse_loss)
    path = pvi.noise.balance_along(noise, torch.stack([noise.position, 1.1 * noise.position]))
    axes = pvi.plots.balance(path)
    assert np.allclose(axes.lines[1].get_ydata(), path.balanced_norm_ratio[:, 0].numpy())


def test_bound_shows_the_gap():
    found = pvi.noise.GeneralizationBound(*torch.ones(6, 3).unbind(), gap=(0.1, 0.01))
    axes = pvi.plots.bound(found)
    assert axes.lines[-1].get_ydata()[0] == 0.1
