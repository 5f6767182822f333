"""Tuners driven by hand, by the protocol of the loop."""

from __future__ import annotations

import torch

from particlevi.running.world import OneProcess
from particlevi.streams import ParticleStreams
from particlevi.typing import Progress


def drive(sampler, tuner, start, num_warmup, num_draws, seed=0):
    """Draws ``[P, T, D]``, infos and the last state of the tuner, by the loop's protocol."""
    streams = ParticleStreams(seed)
    state = sampler.init(start, streams)
    scheduled = {
        name: torch.tensor(schedule(0), dtype=start.dtype)
        for name, schedule in sampler.schedules.items()
    }
    tuned = tuner.init(start, scheduled)
    metric = ("scale", "factor", "basis", "spread")
    draws, infos = [], []
    chosen = tuner.controls(tuned)
    for step in range(num_warmup + num_draws):
        noise = sampler.draw_noise(state, streams)
        before, controls = state.position, {**scheduled, **chosen}
        state, info = sampler.step(state, None, noise, controls)
        if step >= num_warmup:
            draws.append(state.position)
            infos.append(info)
            continue
        progress = Progress(step + 1, num_warmup, num_warmup + num_draws)
        if getattr(tuner, "fewest_chains", 0):
            proposals = sampler.proposals(before, state, info, controls)
            tuned = tuner.consider(tuned, proposals, progress, OneProcess())
        tuned = tuner.update(tuned, state.position, info, progress, OneProcess())
        before, chosen = chosen, tuner.controls(tuned)
        if any(k in chosen and not torch.equal(before[k], chosen[k]) for k in metric):
            state = sampler.init(state.position, streams)
    return torch.stack(draws, 1), infos, tuned
