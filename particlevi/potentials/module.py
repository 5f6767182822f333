"""The posterior of an ``nn.Module``."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter

from particlevi._checks import check_choice, check_positive_int
from particlevi.potentials.layout import Layout
from particlevi.potentials.likelihoods import Likelihood, LikelihoodParameter, log_prob
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.priors import PriorLike, Segment, check_prior, segments
from particlevi.potentials.random import draw_seed, seeded
from particlevi.potentials.vectorize import Vectorized
from particlevi.typing import JSON, Batch

__all__ = ["from_module"]


def from_module(
    module: nn.Module,
    likelihood: Likelihood,
    prior: PriorLike,
    num_data: int,
    *,
    dropout: str | None = None,
    batch_norm: str = "frozen",
    chunk_size: int | None = None,
) -> ModelPotential:
    """The posterior of a module's trainable parameters.

    ``U(theta) = -log prior(theta) - (N/B) sum_b log likelihood(y_b | module_theta(x_b))``, in nats.

    Data are given to ``sample`` as a tuple whose last element is the target and whose others are
    the module's inputs, ``(x, y)`` or ``(x1, x2, y)``; a first element that is a dict is passed as
    keyword arguments. The module is copied: later changes to it do not matter.

    Args:
        module: anything with plain parameters. Tied parameters appear once; parameters with
            ``requires_grad=False`` stay fixed at their present values; buffers stay fixed.
        likelihood: the law of a target given the module's output.
        prior: one prior for all parameters, or one per name pattern.
        num_data: N, the number of data in the whole training set.
        dropout: what to do with dropout layers; must be given if there are any. ``"off"`` samples
            the posterior of the net without dropout. ``"sample"`` keeps the masks, drawn from
            torch's global generator (which ``sample`` seeds) at every evaluation: the energy is
            then random, and its expectation over masks is what is sampled.
        batch_norm: ``"frozen"`` normalises with the layers' running statistics, which stay fixed,
            so that a datum's likelihood does not depend on the others in its batch; the module
            must have seen data in training mode. ``"batch"`` normalises with the statistics of
            the current batch, also in prediction: the likelihood is then a function of whole
            batches and the posterior only approximate.
        chunk_size: at most so many particles are evaluated at once, to bound memory.

    Raises:
        ValueError: dropout without a choice, batch normalisation without running statistics, no
            trainable parameters, mixed dtypes, or a prior that does not cover the parameters.

    >>> net = nn.Linear(3, 1)
    >>> from particlevi import Gaussian, Normal
    >>> potential = from_module(net, Gaussian(scale=0.5), Normal(scale=1.0), num_data=100)
    >>> potential.num_params
    4
    >>> potential.init(2).shape
    torch.Size([2, 4])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {_kind(module)}.")
    if isinstance(likelihood, type) or not hasattr(likelihood, "distribution"):
        raise TypeError(
            f"likelihood must be one such as pvi.Gaussian(scale=0.5), got {_kind(likelihood)}."
        )
    check_prior(prior)
    check_positive_int("num_data", num_data)
    check_choice("batch_norm", batch_norm, ["frozen", "batch"])
    lazy = [n for n, p in module.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise ValueError(f"{lazy} have no shape yet: run the module on data once.")
    module = copy.deepcopy(module).eval()
    _set_dropout(module, dropout)
    _set_batch_norm(module, batch_norm)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            f"{type(module).__name__} has no parameters with requires_grad=True, so there is "
            "nothing to sample."
        )
    dtypes = {p.dtype for p in trainable.values()}
    devices = {p.device for p in trainable.values()}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(
            f"All trainable parameters must have one dtype and device, got {dtypes} on {devices}."
        )
    like = next(iter(trainable.values())).detach()
    own = likelihood.parameters()
    module_shapes = {name: tuple(p.shape) for name, p in trainable.items()}
    layout = Layout(
        module_shapes | {f"likelihood.{name}": parameter.shape for name, parameter in own.items()}
    )
    parts = segments(prior, module_shapes, like) + [
        Segment(torch.Size(p.shape).numel(), p.prior) for p in own.values()
    ]
    names = list(trainable)
    num_module_params = sum(p.numel() for p in trainable.values())
    module_layout = Layout(module_shapes)

    def forward(particle: Tensor, inputs: Any) -> Tensor:
        weights = module_layout.unravel(particle[:num_module_params])
        kwargs = dict(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], Mapping) else None
        args = () if kwargs is not None else inputs
        outputs: Tensor = torch.func.functional_call(module, weights, args, kwargs)
        return outputs

    randomness = "different" if dropout == "sample" else "error"
    outputs_fn = Vectorized(forward, f"The module {type(module).__name__}", randomness)

    def log_likelihood(particles: Tensor, batch: Batch) -> Tensor:
        inputs, targets = split_targets(batch.data)
        outputs = outputs_fn(particles, Batch(inputs, batch.per_particle))
        values = {
            name: tensor.view(-1, *own[name].shape)
            for name, tensor in _tail(particles, own).items()
        }
        return log_prob(likelihood, outputs, targets, values, batch.per_particle)

    return ModelPotential(
        layout=layout,
        num_data=int(num_data),
        log_prior_fn=lambda particles: _log_prior(parts, particles),
        log_likelihood_fn=log_likelihood,
        init_fns=_init_fns(module, names, parts, own),
        device=like.device,
        dtype=like.dtype,
        outputs_fn=outputs_fn,
        likelihood=likelihood,
        constrain_fn=lambda tensors: _constrain(tensors, own),
        chunk_size=chunk_size,
        factorised_prior=True,
        fingerprint=_fingerprint(module, likelihood, prior, num_data, layout, dropout, batch_norm),
    )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def split_targets(data: Any) -> tuple[tuple[Any, ...], Tensor]:
    """Inputs and target of a batch ``(*inputs, target)``."""
    if not isinstance(data, (tuple, list)) or len(data) < 2:
        raise ValueError(
            "A module's data are a tuple (inputs, ..., target), got "
            f"{type(data).__name__}{f' of {len(data)}' if isinstance(data, (tuple, list)) else ''}."
        )
    return tuple(data[:-1]), data[-1]


def _tail(particles: Tensor, own: Mapping[str, LikelihoodParameter]) -> dict[str, Tensor]:
    sizes = [torch.Size(p.shape).numel() for p in own.values()]
    if not sizes:
        return {}
    parts = particles[:, -sum(sizes) :].split(sizes, dim=-1)
    return dict(zip(own, parts, strict=True))


def _log_prior(parts: list[Segment], particles: Tensor) -> Tensor:
    pieces = particles.split([part.size for part in parts], dim=-1) if len(parts) > 1 else None
    total: Tensor | None = None
    for i, part in enumerate(parts):
        piece = pieces[i] if pieces is not None else particles
        value = part.distribution.log_prob(piece).sum(-1)
        total = value if total is None else total + value
    assert total is not None
    return total


def _constrain(
    tensors: dict[str, Tensor], own: Mapping[str, LikelihoodParameter]
) -> dict[str, Tensor]:
    tensors = dict(tensors)
    for name, parameter in own.items():
        value = tensors.pop(f"likelihood.{name}")
        tensors[f"likelihood.{parameter.constrained_name}"] = parameter.constrain(value)
    return tensors


def _set_dropout(module: nn.Module, dropout: str | None) -> None:
    def rate(layer: nn.Module) -> float:
        value = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0.0)
        return float(value) if isinstance(value, (int, float)) else 0.0

    layers = {name: layer for name, layer in module.named_modules() if rate(layer) > 0}
    if dropout is not None:
        check_choice("dropout", dropout, ["off", "sample"])
    elif layers:
        raise ValueError(
            f"The module has dropout in {list(layers)}; say what to do with it: dropout='off' "
            "samples the posterior of the net without dropout, dropout='sample' keeps the masks."
        )
    if dropout == "sample":
        for layer in layers.values():
            layer.training = True


def _untouched(layer: Any) -> bool:
    """Whether the running statistics are those of a fresh layer; not all kinds count batches."""
    return not bool(layer.running_mean.any()) and bool((layer.running_var == 1).all())


def _set_batch_norm(module: nn.Module, batch_norm: str) -> None:
    for name, layer in module.named_modules():
        if not isinstance(layer, _NormBase) or not layer.track_running_stats:
            continue
        if batch_norm == "batch":
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        elif _untouched(layer):
            raise ValueError(
                f"The batch normalisation {name!r} has no running statistics yet: run the module "
                "on data in training mode first (with torch.no_grad(): module.train()(x)), or "
                "pass batch_norm='batch' to normalise with the statistics of each batch, or use "
                "nn.GroupNorm or nn.LayerNorm."
            )


def _init_fns(
    module: nn.Module,
    names: list[str],
    parts: list[Segment],
    own: Mapping[str, LikelihoodParameter],
) -> dict[str, Any]:
    def from_prior(num_particles: int, generator: torch.Generator) -> Tensor:
        with seeded(draw_seed(generator)):
            draws = []
            for part in parts:
                scalar = not part.distribution.batch_shape
                event = (num_particles, part.size) if scalar else (num_particles,)
                draws.append(part.distribution.sample(event).view(num_particles, part.size))
        return torch.cat(draws, dim=-1)

    def ravel_weights(source: nn.Module) -> Tensor:
        weights = dict(source.named_parameters())
        return torch.cat([weights[name].detach().reshape(-1) for name in names])

    def with_own(weights: Tensor, generator: torch.Generator) -> Tensor:
        count = sum(torch.Size(p.shape).numel() for p in own.values())
        tail = from_prior(len(weights), generator)[:, weights.shape[1] :] if count else None
        return weights if tail is None else torch.cat([weights, tail.to(weights)], dim=-1)

    def from_module_init(num_particles: int, generator: torch.Generator) -> Tensor:
        fresh = copy.deepcopy(module)
        draws = []
        with seeded(draw_seed(generator)):
            for _ in range(num_particles):
                for layer in fresh.modules():
                    reset = getattr(layer, "reset_parameters", None) or getattr(
                        layer, "_reset_parameters", None
                    )
                    if callable(reset):
                        reset()
                draws.append(ravel_weights(fresh))
        return with_own(torch.stack(draws), generator)

    def from_current(num_particles: int, generator: torch.Generator) -> Tensor:
        return with_own(ravel_weights(module).repeat(num_particles, 1), generator)

    without_reset = _parameters_without_reset(module, names)
    methods: dict[str, Any] = {}
    if without_reset:
        warnings.warn(
            f"{without_reset} belong to layers without reset_parameters(), so particles start "
            "from the prior by default. Pass initial= to sample() for another start.",
            stacklevel=3,
        )
    else:
        methods["module"] = from_module_init
    return methods | {"prior": from_prior, "current": from_current}


def _parameters_without_reset(module: nn.Module, names: list[str]) -> list[str]:
    covered: set[int] = set()
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            covered |= {id(p) for p in layer.parameters(recurse=False)}
        elif hasattr(layer, "_reset_parameters"):
            covered |= {id(p) for p in layer.parameters()}
    weights = dict(module.named_parameters())
    return [name for name in names if id(weights[name]) not in covered]


def _fingerprint(
    module: nn.Module,
    likelihood: Likelihood,
    prior: PriorLike,
    num_data: int,
    layout: Layout,
    dropout: str | None,
    batch_norm: str,
) -> dict[str, JSON]:
    digest = hashlib.sha256()
    fixed = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    for name, tensor in [*fixed.items(), *module.named_buffers()]:
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    priors = prior if isinstance(prior, Mapping) else {"*": prior}
    return {
        "kind": "module",
        "module": str(module),
        "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
        "likelihood": dict(likelihood.settings),
        "prior": {name: dict(each.settings) for name, each in priors.items()},
        "num_data": num_data,
        "dropout": dropout,
        "batch_norm": batch_norm,
        "fixed_tensors": digest.hexdigest()[:16],
    }
