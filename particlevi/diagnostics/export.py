"""Draws as ArviZ groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.diagnostics import arviz

__all__ = ["to_arviz"]


def to_arviz(
    draws: Any, data: Any, log_likelihood: bool, posterior_predictive: bool, seed: int
) -> Any:
    """See ``Draws.to_arviz``."""
    if (log_likelihood or posterior_predictive) and data is None:
        raise ValueError(
            "log_likelihood and posterior_predictive need the data: to_arviz(data=(x, y), ...)."
        )
    groups = {
        "posterior": _quantities(draws, draws.particles),
        "sample_stats": _stats(draws.stats, draws.interacting),
    }
    if draws.warmup is not None:
        groups["warmup_posterior"] = _quantities(draws, draws.warmup)
        groups["warmup_sample_stats"] = _stats(draws.warmup_stats, draws.interacting)
    if log_likelihood:
        values = draws.log_likelihood(data)
        groups["log_likelihood"] = (
            {"y": _array(values.transpose(0, 1), False)}
            if (draws.interacting)
            else {"y": _array(values, False)}
        )
    if data is not None:
        leaves = pytree.tree_leaves(data)
        groups["observed_data"] = {"y": np.asarray(leaves[-1])}
    if posterior_predictive:
        groups["posterior_predictive"] = {"y": _targets(draws, data, seed)}
    attrs = {
        "inference_library": "particlevi",
        **draws.attrs,
        "interacting": draws.interacting,
        "interrupted": draws.interrupted,
        "diverged": {str(chain): step for chain, step in draws.diverged.items()},
        "chains": draws.chains,
        "sampling_time": draws.seconds,
    }
    return arviz.build(groups, attrs=attrs)


def _array(values: Tensor, interacting: bool) -> np.ndarray[Any, Any]:
    if interacting:
        values = values[:, -1].unsqueeze(0)
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return values.detach().cpu().numpy()


def _quantities(draws: Any, values: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    interacting = draws.interacting
    if draws.output_shape is not None:
        return {"outputs": _array(values.unflatten(-1, draws.output_shape), interacting)}
    if draws.coordinates is not None:
        return {"theta": _array(values, interacting)}
    chains, length, size = values.shape
    flat = values.reshape(-1, size)
    if draws.potential is not None:
        tensors = draws.potential.constrain(flat.to(draws.potential.dtype))
    else:
        sizes = [int(np.prod(shape)) for shape in draws.shapes.values()]
        parts = flat.split(sizes, dim=-1)
        tensors = {
            name: part.reshape(-1, *shape)
            for (name, shape), part in zip(draws.shapes.items(), parts, strict=True)
        }
    return {
        name: _array(tensor.reshape(chains, length, *tensor.shape[1:]), interacting)
        for name, tensor in tensors.items()
    }


def _stats(stats: dict[str, Tensor], interacting: bool) -> dict[str, np.ndarray[Any, Any]]:
    chains = max((len(value) for value in stats.values() if value.ndim == 2), default=1)
    found = {}
    for name, value in stats.items():
        wide = value if value.ndim == 2 else value.expand(chains, -1)
        if name == "potential":
            found["lp"] = _array(-wide, interacting)
        else:
            found[name] = _array(wide, interacting)
    return found


def _targets(draws: Any, data: Any, seed: int) -> np.ndarray[Any, Any]:
    model = draws.potential
    if model is None or model.likelihood is None:
        raise ValueError("posterior_predictive needs draws of a potential made from a module.")
    inputs = data[:-1]
    outputs = draws.outputs(inputs)
    chains, length = outputs.shape[:2]
    kept = draws.particles[:, -1:] if draws.interacting else draws.particles
    own = model.likelihood_parameters(kept.reshape(-1, kept.shape[-1]).to(model.dtype))
    law = model.likelihood.distribution(outputs.flatten(0, 1), own)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        targets = law.sample()
    targets = targets.reshape(chains, length, *targets.shape[1:])
    return _array(targets, draws.interacting)
