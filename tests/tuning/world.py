"""One process, for tuners that are driven by hand."""

from __future__ import annotations

import torch
from torch import Tensor


class Alone:
    """All particles are here."""

    rank, size = 0, 1

    def share(self, num_particles: int) -> range:
        return range(num_particles)

    def sum(self, values: Tensor) -> Tensor:
        return values.sum(0)

    def mean(self, values: Tensor) -> Tensor:
        return values.mean(0)

    def max(self, values: Tensor) -> Tensor:
        return values.max(0).values

    def gather(self, values: Tensor) -> Tensor:
        return values


def drive(sampler, tuner, start, num_warmup, num_draws, seed=0):
    """Draws ``[P, T, D]``, infos and the last state of the tuner, by the loop's protocol."""
    from particlevi.typing import Progress

    generator = torch.Generator().manual_seed(seed)
    tuned = tuner.init(start, {})
    state = sampler.init(start, generator)
    scheduled = {
        name: torch.tensor(schedule(0), dtype=start.dtype)
        for name, schedule in sampler.schedules.items()
    }
    metric = ("scale", "factor")
    draws, infos = [], []
    chosen = tuner.controls(tuned)
    for step in range(num_warmup + num_draws):
        noise = sampler.draw_noise(state, generator)
        state, info = sampler.step(state, None, noise, {**scheduled, **chosen})
        if step >= num_warmup:
            draws.append(state.position)
            infos.append(info)
            continue
        progress = Progress(step + 1, num_warmup, num_warmup + num_draws)
        tuned = tuner.update(tuned, state.position, info, progress, Alone())
        before, chosen = chosen, tuner.controls(tuned)
        if any(k in chosen and not torch.equal(before[k], chosen[k]) for k in metric):
            state = sampler.init(state.position, generator)
    return torch.stack(draws, 1), infos, tuned
