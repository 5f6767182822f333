"""Where the particles of a module start."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from particlevi._warning import warn
from particlevi.potentials.layout import Layout
from particlevi.potentials.random import draw_seeds, seeded
from particlevi.potentials.starts import Draw, Starts, jittered
from particlevi.typing import Streams

__all__ = ["module_starts"]

_LOOKS = 16
"""Fresh initialisations that a module's weights are compared with."""

_FAR = 10.0
"""Beyond so many standard deviations from fresh ones, weights are not fresh."""


def module_starts(
    module: nn.Module, layout: Layout, draw_prior: Draw | None, known: Collection[str]
) -> Starts:
    """Ways to choose starting points of a module's parameters.

    Args:
        module: the caller's copy, with its weights.
        layout: the module's tensors first, then those that likelihood and prior add.
        draw_prior: of all of them; None for an improper prior.
        known: the names in the caller's ``state_dict``.
    """
    parameters = dict(module.named_parameters())
    names = [name for name in layout.shapes if name in parameters]
    size = sum(parameters[name].numel() for name in names)

    def weights_of(source: nn.Module) -> Tensor:
        found = dict(source.named_parameters())
        return torch.cat([found[name].detach().reshape(-1) for name in names])

    def complete(weights: Tensor, streams: Streams) -> Tensor:
        if size == layout.num_params:
            return weights
        if draw_prior is None:
            rest = torch.zeros(len(weights), layout.num_params - size)
        else:
            rest = draw_prior(len(weights), streams)[:, size:]
        return torch.cat([weights, rest.to(weights)], dim=-1)

    def fresh(num_particles: int, streams: Streams) -> Tensor:
        rows: list[Tensor] = []
        for seed in draw_seeds(streams, num_particles):
            with seeded(seed):
                rows.extend(weights_of(each) for each in _fresh_copies(module, 1))
        return complete(torch.stack(rows), streams)

    def current(num_particles: int, streams: Streams) -> Tensor:
        return complete(weights_of(module).repeat(num_particles, 1), streams)

    def spread(weights: Tensor, num_particles: int, streams: Streams) -> Tensor:
        sizes = layout.sizes[: len(names)]
        points = jittered(weights.reshape(1, -1), sizes, num_particles, streams)
        return complete(points, streams)

    def near_current(num_particles: int, streams: Streams) -> Tensor:
        return spread(weights_of(module), num_particles, streams)

    def named(tensors: Mapping[str, Tensor], num_particles: int, streams: Streams) -> Tensor:
        loaded = _loaded(module, tensors, names, known)
        points = spread(loaded, num_particles, streams)
        start = size
        for name, length in list(zip(layout.shapes, layout.sizes, strict=True))[len(names) :]:
            if name in tensors:
                points[:, start : start + length] = tensors[name].reshape(-1)
            start += length
        return points

    methods: dict[str, Draw] = {"current": current, "jittered": near_current}
    if draw_prior is not None:
        methods["prior"] = draw_prior
    without_reset = _without_reset(module, names)
    if not without_reset:
        methods["fresh"] = fresh
        choose = functools.cache(lambda: "fresh" if _is_fresh(module, names) else "jittered")
    else:
        warn(
            f"{without_reset} belong to layers without reset_parameters(), so that they cannot be "
            "initialised anew: particles start from the module's present weights by default, all "
            "but the first with 1 % of noise. Pass initial= to sample() for another start.",
        )
        choose = functools.cache(lambda: "jittered")
    return Starts(methods, choose, named)


def _reset(layer: nn.Module) -> Callable[[], None] | None:
    for name in ("reset_parameters", "_reset_parameters"):
        found = getattr(layer, name, None)
        if callable(found):
            reset: Callable[[], None] = found
            return reset
    return None


def _fresh_copies(module: nn.Module, count: int) -> Iterator[nn.Module]:
    """One copy, initialised again and again; inner layers first, as when modules are made."""

    def initialise(layer: nn.Module) -> None:
        for child in layer.children():
            initialise(child)
        reset = _reset(layer)
        if reset is not None:
            reset()

    fresh = copy.deepcopy(module)
    for _ in range(count):
        initialise(fresh)
        yield fresh


def _is_fresh(module: nn.Module, names: list[str]) -> bool:
    """Whether the weights look like a draw of the module's own initialisation.

    Of every tensor the mean, the root mean square and the largest absolute value are compared with
    those of fresh copies. A net that was trained, loaded or set by hand differs in some of them.
    """

    def summary(source: nn.Module) -> Tensor:
        weights = dict(source.named_parameters())
        rows = []
        for name in names:
            flat = weights[name].detach().double().flatten()
            rows.append(torch.stack([flat.mean(), flat.square().mean().sqrt(), flat.abs().max()]))
        return torch.stack(rows)

    present = summary(module)
    with seeded(0):
        looks = torch.stack([summary(each) for each in _fresh_copies(module, _LOOKS)])
    distance = (present - looks.mean(0)).abs()
    allowed = _FAR * looks.std(0) + 1e-6 * looks.mean(0).abs()
    return bool((distance <= allowed).all())


def _loaded(
    module: nn.Module, tensors: Mapping[str, Tensor], names: list[str], known: Collection[str]
) -> Tensor:
    """The weights of a ``state_dict`` of the module, which agrees with what the module fixes."""
    state = module.state_dict()
    wanted = dict(module.named_parameters(remove_duplicate=False))
    aliases = {name: [n for n, p in wanted.items() if p is wanted[name]] for name in names}
    given = {name: next((n for n in aliases[name] if n in tensors), None) for name in names}
    missing = [name for name, source in given.items() if source is None]
    extra = [n for n in tensors if n not in known and not n.startswith(("likelihood.", "prior."))]
    if missing or extra:
        raise ValueError(
            f"initial is not a state_dict of this {type(module).__name__}: missing {missing}, "
            f"unknown {extra}."
        )
    parts = []
    for name, source in given.items():
        value = torch.as_tensor(tensors[source or name]).detach()
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"initial's {source} must have shape {list(wanted[name].shape)}, got "
                f"{list(value.shape)}."
            )
        parts.append(value.reshape(-1).to(wanted[name]))
    sampled = {alias for each in aliases.values() for alias in each}
    differ = [
        name
        for name, fixed in state.items()
        if name in tensors and name not in sampled and not _equal(fixed, tensors[name])
    ]
    if differ:
        raise ValueError(
            f"{differ} are not sampled and differ between initial and the module that the "
            "potential was made from: load the state_dict into the module before from_module()."
        )
    return torch.cat(parts)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a))


def _without_reset(module: nn.Module, names: list[str]) -> list[str]:
    covered: set[int] = set()
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            covered |= {id(p) for p in layer.parameters(recurse=False)}
        elif hasattr(layer, "_reset_parameters"):
            covered |= {id(p) for p in layer.parameters()}
    weights = dict(module.named_parameters())
    return [name for name in names if id(weights[name]) not in covered]
