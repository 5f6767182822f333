"""What the sites of a Pyro model are: there once, or once per datum. Pyro is not imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import JSON, Batch

__all__ = [
    "Look",
    "Sites",
    "Terms",
    "arguments",
    "check_complete",
    "check_size",
    "num_rows",
    "sort_terms",
    "subsampling",
]

Sites: TypeAlias = dict[str, Any]
"""Pyro's messages of the sample sites of one run, by name."""

Look: TypeAlias = Callable[..., Sites]
"""``look(data, rows)``: the sites of a run on that many rows, with log densities and scales, always
at one particle, or at any with ``particle=None``."""


class Terms(NamedTuple):
    """The sites of a model, sorted.

    Attributes:
        data_dims: of the terms with one value per datum, the dimension that counts the data.
        prior: the terms that are there once.
        observed: the terms that are neither latent nor a factor, with the name or number of the
            argument that holds their values, None if there is none.
        shown: an example of each value that is the same for every batch.
        prior_data: some data to evaluate the prior on.
        local: the latent sites that have one value per datum.
        fixed: whether the model runs on all the data only, as with a plate of their number.
        joint: the terms that depend on the data without a dimension for them.
    """

    data_dims: dict[str, int]
    prior: list[str]
    observed: dict[str, JSON]
    shown: dict[str, Tensor]
    prior_data: Any
    local: list[str]
    fixed: bool
    joint: list[str]


def sort_terms(
    model: str, latent: list[str], example: Any, rows: int, look: Look, complete: bool
) -> Terms:
    """Sort the sites into those per datum and those there once.

    Runs at one particle on other data tell what depends on them; a run on another number of rows
    tells which dimensions follow it.

    Args:
        model: its name.
        latent: its latent sites.
        example: some data.
        rows: how many; 0 for a model without data.
        look: runs the model.
        complete: whether the example holds all the data.

    Raises:
        ValueError: terms that no minibatch can estimate, observed values outside their support, or
            a scale that holds N/B already.
    """

    def attempt(index: Tensor, change: float = 0.0, **options: Any) -> Sites:
        def vary(leaf: Tensor) -> Tensor:
            leaf = leaf[index.to(leaf.device)]
            return (1 - change) * leaf + change if leaf.is_floating_point() else leaf

        try:
            return look(pytree.tree_map(vary, example), len(index), **options)
        except Exception:
            return {}

    whole = example
    base = look(example, rows or None)
    terms = [name for name, site in base.items() if not _is_deterministic(site)]
    varying: set[str] = set()
    data_dims: dict[str, int] = {}
    local: list[str] = []
    joint: list[str] = []
    fixed = False
    if rows:
        index = torch.arange(rows)
        single, first = attempt(index[:1]), attempt(index * 0)
        other = index[:-1] if rows > 2 else index.repeat(2)
        looks = [single, first, attempt(index * 0 - 1, 0.5), attempt(other)]
        varying = {n for n in base for sites in looks if sites and _differ(n, base, sites)}
        resized = looks[-1] or attempt(other, particle=None)
        fixed = complete and not resized
        for name in [name for name in terms if name not in latent]:
            dim = _data_dim(base[name], rows, resized)
            if dim is not None:
                data_dims[name] = dim
                _check_observed(base[name], resized.get(name))
        local = _local(latent, data_dims, base, resized)
        joint = [n for n in terms if n in varying and n not in data_dims]
        if local and complete and data_dims:
            varying, joint = set(), []  # the data are always these, so that all else is there once
        else:
            _check_local(local)
            _check_whole(joint, latent, complete)
        if not data_dims and not joint:
            raise ValueError(
                f"No observed site of the model {model} depends on the batch: pass the "
                "observations as pyro.sample(..., obs=y)."
            )
        if single and not local:
            example = pytree.tree_map(lambda leaf: leaf[:1], example)
    once = [name for name in base if name not in data_dims and name not in varying]
    return Terms(
        data_dims=data_dims,
        prior=[name for name in terms if name in once],
        observed={
            n: _argument(base[n]["value"], whole)
            for n in terms
            if n not in latent and base[n]["value"].numel()
        },
        shown={n: base[n]["value"] for n in once if n in latent or n not in terms},
        prior_data=example,
        local=local,
        fixed=fixed or bool(joint),
        joint=joint,
    )


def _local(latent: list[str], data_dims: dict[str, int], base: Sites, resized: Sites) -> list[str]:
    """The latent sites that have one value per datum."""
    plates = {
        frame.name
        for name, site in base.items()
        for frame in site["cond_indep_stack"]
        if frame in subsampling(site) or frame.dim == data_dims.get(name, 0)
    }
    local = []
    for name in latent:
        site, twin = base[name], resized.get(name)
        moves = resized and (twin is None or twin["value"].shape != site["value"].shape)
        if moves or any(frame.name in plates for frame in site["cond_indep_stack"]):
            local.append(name)
    return local


def _check_local(local: list[str]) -> None:
    """No latent variable belongs to a datum."""
    if local:
        raise ValueError(
            f"The latent sites {local} have one value per datum (or should be observed, but "
            "their values are missing from the batch), and no minibatch can update those: "
            "give all the data as example_batch, and to sample without batch_size, or sum them out."
        )


def _check_whole(joint: list[str], latent: list[str], complete: bool) -> None:
    """Every term that depends on the data is a sum over them, or all the data are there.

    A latent site that depends on them is seldom meant, as under a scale for the data.
    """
    priors = [name for name in joint if name in latent]
    if complete and not priors:
        return
    if joint:
        advice = (
            "Or use the full data at every step, without a batch: "
            "from_pyro(functools.partial(model, *data))."
            if priors
            else "Or give all the data as example_batch, and take all of them at every step."
        )
        raise ValueError(
            f"The sites {priors or joint} depend on the data but have no dimension for them, so "
            "N/B cannot rescale them: put them in pyro.plate(name, len(batch)), without .to_event "
            f"over the data. {advice}"
        )


def check_complete(batch: Batch, data: Any, local: list[str]) -> None:
    """A batch is all the data of the model, in their order.

    Raises:
        ValueError: it is not.
    """
    pairs = zip(pytree.tree_leaves(batch.data), pytree.tree_leaves(data), strict=True)
    for given, leaf in pairs:
        lead = given.shape[:1] if batch.per_particle else ()
        own = leaf.to(given).expand(*lead, *leaf.shape)
        if given.shape != own.shape or not torch.equal(given, own):
            raise ValueError(
                f"The latent sites {local} have one value per datum, so that the model takes all "
                "its data at every step, in the order of example_batch: leave batch_size out, or "
                "make a potential with these data as example_batch."
            )


def check_size(batch: Batch, num_data: int | None) -> None:
    """A batch has as many data as the model is made for.

    Raises:
        ValueError: it has not.
    """
    lead = 1 if batch.per_particle else 0
    sizes = {leaf.shape[lead] for leaf in pytree.tree_leaves(batch.data)}
    if sizes != {num_data}:
        raise ValueError(
            f"The model runs on {num_data} data only, got {sorted(sizes)}: for minibatches, and "
            "for what looks at parts of the data, write pyro.plate(name, len(batch)) in place of a "
            "number or of one vector, and take from the batch whatever belongs to a datum."
        )


def _argument(value: Tensor, data: Any) -> JSON:
    """The argument of the model that holds the values of a site."""
    for place, leaf in arguments(data).items():
        if isinstance(leaf, Tensor) and leaf.shape == value.shape and torch.equal(leaf, value):
            return place
    return None


def arguments(data: Any) -> dict[str | int, Any]:
    """A model's arguments by name or number."""
    if isinstance(data, Mapping):
        return dict(data)
    return dict(enumerate(data if isinstance(data, (tuple, list)) else [data]))


def _differ(name: str, a: Sites, b: Sites) -> bool:
    """Whether a site is not the same in two runs at the same particle."""
    if name not in b:
        return True
    key = "value" if _is_deterministic(a[name]) else "log_prob"
    x, y = a[name][key], b[name][key]
    return x.shape != y.shape or not torch.equal(x.nan_to_num(), y.nan_to_num())


def _data_dim(site: Any, rows: int, resized: Sites) -> int | None:
    """The dimension of a log density that follows the rows of the batch."""
    shape = site["log_prob"].shape
    dims = [dim for dim in range(-len(shape), 0) if shape[dim] == rows]
    if resized:
        other = resized[site["name"]]["log_prob"].shape if site["name"] in resized else ()
        dims = [dim for dim in dims if len(other) == len(shape) and other[dim] != rows]
    dims = [frame.dim for frame in subsampling(site) if frame.vectorized] or dims
    if len(dims) > 1:
        raise ValueError(
            f"The log density of site {site['name']!r} has shape {list(shape)}, and the data may "
            f"be in any of its dimensions {dims}: try an example_batch of another length."
        )
    return dims[0] if dims else None


def _check_observed(site: Any, resized: Any) -> None:
    """Observed values are in their support, and no scale of the user's holds N/B."""
    law, possible = site["fn"], True
    if site["mask"] is None and not hasattr(law, "_mask"):
        with suppress(AttributeError, NotImplementedError):
            possible = bool(law.support.check(site["value"]).all())
    if not possible and site["value"].isnan().any():
        raise ValueError(
            f"Site {site['name']!r} has observed values that are NaN. If they are missing, give "
            "values without NaN and a mask as data, (y.nan_to_num(), ~y.isnan()), and leave the "
            "former out by the latter: pyro.sample(..., dist.Normal(...).mask(seen), obs=y)."
        )
    if not possible:
        raise ValueError(
            f"Site {site['name']!r} has observed values outside its support {law.support!r}."
        )
    a, b = (torch.as_tensor(each["scale"]).double() for each in (site, resized or site))
    if a.numel() == b.numel() == 1 and not torch.isclose(a, b):
        raise ValueError(
            f"Site {site['name']!r} has a scale that changes with the length of the batch, from "
            f"{a:g} to {b:g}. The likelihood is rescaled by N/B already: leave poutine.scale out."
        )


def subsampling(site: Any) -> list[Any]:
    """The plates around a site that take part of their size."""
    return [f for f in site["cond_indep_stack"] if f.full_size not in (None, f.size)]


def _is_deterministic(site: Any) -> bool:
    """Whether it is a ``pyro.deterministic`` or, of a reparametrised site, what is left of it."""
    return bool(site["is_observed"] and getattr(site["fn"], "_mask", None) is False)


def num_rows(data: Any) -> int:
    """B, the length that all tensors of a batch share."""
    leaves = pytree.tree_leaves(data)
    shapes = [list(leaf.shape) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]
    lengths = {shape[0] if isinstance(shape, list) and shape else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"A batch is made of tensors with one first dimension B >= 1, got {shapes}: bind other "
            "arguments with functools.partial."
        )
    return int(lengths.pop())
