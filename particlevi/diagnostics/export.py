"""Draws as ArviZ groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_flag, check_is, check_seed
from particlevi.data import DataLike, as_data, as_particles
from particlevi.data.tensors import is_tensors
from particlevi.diagnostics import arviz, outputs
from particlevi.diagnostics.predictive import draw_sites
from particlevi.drawset import DrawSet, check_draws
from particlevi.drawset.lazy import LazyTensor
from particlevi.potentials._pyro_terms import arguments
from particlevi.potentials.likelihoods import split_weights
from particlevi.potentials.prior_predictive import PriorPredictive

__all__ = ["to_arviz"]


def to_arviz(
    draws: DrawSet,
    data: DataLike = None,
    *,
    log_likelihood: bool = False,
    posterior_predictive: bool = False,
    prior: PriorPredictive | None = None,
    seed: int = 0,
) -> Any:
    """See ``Draws.to_arviz``."""
    check_draws(draws)
    check_flag("log_likelihood", log_likelihood)
    check_flag("posterior_predictive", posterior_predictive)
    check_seed("seed", seed)
    if prior is not None:
        check_is("prior", prior, PriorPredictive, "what potential.prior_predictive gives")
    model = draws.potential
    without_data = model is not None and model.predictive_fn is not None and model.num_data is None
    if (log_likelihood or (posterior_predictive and not without_data)) and data is None:
        raise ValueError(
            "log_likelihood and posterior_predictive need the data: to_arviz(data=(x, y), ...)."
        )
    if data is not None and model is not None and not is_tensors(data):
        data = as_data(data, model, complete=False).whole().data
    last = draws.facts.kind == "particles"
    groups: dict[str, Mapping[str, Any]] = {}
    ready: dict[str, Any] = {}
    if isinstance(draws.particles, LazyTensor) and not last:
        where = draws.particles.selection
        ready = arviz.on_disk(where.source.path, where.chains, where.draws)
    else:
        groups = _groups(draws, last)
    if log_likelihood:
        values = outputs.log_likelihood(draws, data)
        values = values.transpose(0, 1) if last else values
        groups["log_likelihood"] = {_target_name(draws): _array(values, False)}
    if data is not None:
        groups["observed_data"] = _observed(draws, data)
    if log_likelihood:
        groups["log_likelihood"] = _shaped(groups["log_likelihood"], groups["observed_data"])
    if posterior_predictive:
        groups["posterior_predictive"] = _targets(draws, data, seed)
    if prior is not None:
        groups["prior"] = _prior(draws, prior)
        groups["prior_predictive"] = {
            name: _array(values.unsqueeze(0), False) for name, values in prior.targets.items()
        }
    attrs = {
        "inference_library": "particlevi",
        **draws.attrs,
        "interacting": draws.interacting,
        "interrupted": draws.interrupted,
        "diverged": {str(chain): step for chain, step in draws.diverged.items()},
        "chains": draws.chains,
        "sampling_time": draws.seconds,
    }
    return arviz.build(groups, attrs=attrs, ready=ready)


def _groups(draws: DrawSet, last: bool) -> dict[str, Mapping[str, Any]]:
    """Draws and statistics."""
    groups = {
        "posterior": _quantities(draws, draws.particles),
        "sample_stats": _stats(draws.stats, last),
    }
    if draws.warmup is not None:
        groups["warmup_posterior"] = _quantities(draws, draws.warmup)
        groups["warmup_sample_stats"] = _stats(draws.warmup_stats, last)
    return dict(groups)


def _array(values: Tensor, last: bool) -> np.ndarray[Any, Any]:
    """One chain whose draws are the particles, if only their last state counts."""
    if last:
        values = values[:, -1].unsqueeze(0)
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    return values.detach().cpu().numpy()


def _quantities(draws: DrawSet, values: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    last = draws.facts.kind == "particles"
    if draws.kept:
        found: dict[str, np.ndarray[Any, Any]] = {}
        start = 0
        for name, shape in draws.kept.items():
            part = values[..., start : start + int(np.prod(shape))]
            start += int(np.prod(shape))
            if name == "parameters":
                found |= _quantities(draws.only(name), part)
            else:
                found[name] = _array(part.unflatten(-1, shape), last)
        return found
    if draws.output_shape is not None:
        return {"outputs": _array(values.unflatten(-1, draws.output_shape), last)}
    if draws.coordinates is not None:
        return {"theta": _array(values, last)}
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
        name: _array(tensor.reshape(chains, length, *tensor.shape[1:]), last)
        for name, tensor in tensors.items()
    }


def _prior(draws: DrawSet, prior: PriorPredictive) -> dict[str, np.ndarray[Any, Any]]:
    """The model's quantities under draws of its prior, as one chain."""
    tensors = draws.model().constrain(prior.particles)
    return {name: _array(tensor.unsqueeze(0), False) for name, tensor in tensors.items()}


def _stats(stats: Mapping[str, Tensor], last: bool) -> dict[str, np.ndarray[Any, Any]]:
    chains = max((len(value) for value in stats.values() if value.ndim == 2), default=1)
    arrays = {}
    for name, value in stats.items():
        wide = value if value.ndim == 2 else value.expand(chains, -1)
        if name == "potential":
            arrays["lp"] = _array(-wide, last)
        else:
            arrays[name] = _array(wide, last)
    return arrays


def _target_name(draws: DrawSet) -> str:
    """The name of the observed site of a Pyro model that has one."""
    observed = list(draws.fingerprint.get("observed", {}))
    return str(observed[0]) if len(observed) == 1 else "y"


def _observed(draws: DrawSet, data: DataLike) -> dict[str, np.ndarray[Any, Any]]:
    """The targets of a module, or the arguments of a Pyro model that are its observations.

    Numbers that a mask leaves out are NaN.
    """
    if "observed" not in draws.fingerprint:
        last = data[-1] if isinstance(data, (tuple, list)) else data
        if draws.potential is None or draws.potential.likelihood is None:
            return {"y": _plain(pytree.tree_leaves(last)[-1])}
        targets, _, mask = split_weights(last)
        values = _plain(targets)
        if mask is None or not np.issubdtype(values.dtype, np.floating):
            return {"y": values}
        seen = _plain(mask).astype(bool).reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
        return {"y": np.where(seen, values, np.nan)}
    places, given = draws.fingerprint["observed"], arguments(data)
    return {name: _plain(given[place]) for name, place in places.items() if place in given}


def _shaped(terms: Mapping[str, Any], observed: Mapping[str, Any]) -> dict[str, Any]:
    """Log-likelihoods in the shape of the observations, where there is one for each number."""
    found = dict(terms)
    for name, values in terms.items():
        like = observed.get(name)
        if like is not None and like.size == values[0, 0].size:
            found[name] = values.reshape(*values.shape[:2], *like.shape)
    return found


def _plain(values: Any) -> np.ndarray[Any, Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _targets(draws: DrawSet, data: Any, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    model = draws.potential
    if model is None or (model.likelihood is None and model.predictive_fn is None):
        raise ValueError(
            "posterior_predictive needs draws of a potential made from a module or a Pyro model."
        )
    flat = as_particles(draws.parameters(), model, model.num_params)
    if model.predictive_fn is not None:
        sites = draw_sites(model, flat, data, seed)
    else:
        assert model.likelihood is not None
        values = outputs.outputs(draws, data[:-1]).flatten(0, 1)
        law = model.likelihood.distribution(values, model.likelihood_parameters(flat))
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            sites = {"y": law.sample()}
    chains, last = len(draws), draws.facts.kind == "particles"
    return {
        name: _array(targets.reshape(chains, -1, *targets.shape[1:]), last)
        for name, targets in sites.items()
    }
