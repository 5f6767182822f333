"""Where positions before and after a step are compared."""

from __future__ import annotations

import particlevi as pvi
from particlevi.running import Monitor
from particlevi.running.watch import Watch

NORMAL = pvi.from_log_density(lambda x: -0.5 * x.square().sum(-1), 2)


def test_positions_are_compared_at_the_first_look_at_the_last_and_at_every_tenth():
    watch = Watch(pvi.sgld(NORMAL), Monitor(every=5), 0, 233, False, {})
    looks = [*range(105, 233, 5), 233]
    assert [look for look in looks if watch.compares(look, 100)] == [105, 150, 200, 233]


def test_positions_are_not_compared_without_a_temperature():
    watch = Watch(pvi.sgd(NORMAL), Monitor(every=5), 0, 233, False, {})
    assert not watch.compares(150, 100)
