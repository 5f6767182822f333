"""Arrays to ArviZ: its containers, effective sample sizes, R-hat and Monte-Carlo errors.

The only file that imports ArviZ, which is slow to import, and only inside functions. It works on
ArviZ 0.x (one package, ``InferenceData``) and 1.x (``arviz_base`` and ``arviz_stats``,
``xarray.DataTree``), and branches on the version only: 0.x does not raise on calls meant for 1.x.

Statistics are those of Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization,
folding, and localization: An improved R-hat for assessing convergence of MCMC", 2021.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from particlevi._checks import check_choice, is_number
from particlevi.drawset.lazy import panels

__all__ = ["build", "ess", "integrated_autocorrelation_time", "loo", "mcse", "on_disk", "rhat"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

EssMethod: TypeAlias = Literal["bulk", "tail", "mean", "sd", "median", "quantile"]
McseMethod: TypeAlias = Literal["mean", "sd", "median", "quantile"]

SAMPLE_DIMS = ("chain", "draw")
ESS_METHODS = ("bulk", "tail", "mean", "sd", "median", "quantile")
MCSE_METHODS = ("mean", "sd", "median", "quantile")
MIN_DRAWS = 4
BLOCK_BYTES = 2**23


def _is_legacy() -> bool:
    """Whether ArviZ is of the 0.x line."""
    return find_spec("arviz") is not None and version("arviz").startswith("0.")


def _package(part: str) -> Any:
    """The package that holds ``part`` (``"base"`` or ``"stats"``) of ArviZ."""
    return import_module("arviz" if _is_legacy() else f"arviz_{part}")


def build(
    groups: Mapping[str, Mapping[str, Array]],
    *,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Any] | None = None,
    ready: Mapping[str, Any] | None = None,
) -> Any:
    """Arrays as an ArviZ ``InferenceData`` (0.x) or ``DataTree`` (1.x).

    Args:
        groups: arrays by variable, by group. They are ``[chain, draw, *shape]``, but ``[*shape]``
            in groups whose name contains ``data``, such as ``observed_data``. Other group names
            are kept as they are; groups without variables are left out.
        coords: labels along named dimensions.
        dims: names of the dimensions of ``shape``, by variable.
        attrs: of the container. Values that netCDF cannot hold (booleans, None, lists, dicts)
            become JSON.
        ready: groups that are xarray datasets already.

    Raises:
        ValueError: names that netCDF cannot hold, or arrays without chains and draws.

    >>> idata = build({"posterior": {"net.0.weight": np.zeros((4, 100, 3, 2))}})
    >>> dict(idata["posterior"]["net.0.weight"].sizes)
    {'chain': 4, 'draw': 100, 'net.0.weight_dim_0': 3, 'net.0.weight_dim_1': 2}
    """
    plain = {name: _attribute(value) for name, value in (attrs or {}).items()}
    datasets = dict(ready or {}) | {
        group: _dataset(group, variables, coords, dims)
        for group, variables in groups.items()
        if variables
    }
    if _is_legacy():
        return _package("base").InferenceData(attrs=plain, **datasets)
    tree = import_module("xarray").DataTree.from_dict(datasets)
    tree.attrs = plain
    return tree


def on_disk(path: Path, chains: Array, draws: Array) -> dict[str, Any]:
    """The groups of draws on disk as xarray datasets, read where they are looked at.

    Args:
        path: of the Zarr hierarchy.
        chains: places of the chains that are wanted.
        draws: numbers of the draws that are wanted; of the warm-up all are.
    """
    tree = import_module("xarray").open_datatree(path, engine="zarr")
    groups = {}
    for name, node in tree.children.items():
        found = node.to_dataset()
        if "chain" in found.dims:
            found = found.isel(chain=chains)
        if "draw" in found.dims and not name.startswith("warmup"):
            found = found.isel(draw=draws)
        groups[str(name)] = found
    return groups


def _attribute(value: Any) -> str | int | float:
    """``value`` in a form that netCDF can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))


def _dataset(
    group: str,
    variables: Mapping[str, Array],
    coords: Mapping[str, Any] | None,
    dims: Mapping[str, Sequence[str]] | None,
) -> Any:
    sample_dims = [] if "data" in group else list(SAMPLE_DIMS)
    _check_name(group)
    for name, values in variables.items():
        _check_name(name)
        if np.ndim(values) < len(sample_dims):
            raise ValueError(
                f"{group}/{name} must be an array [chain, draw, ...], got shape "
                f"{list(np.shape(values))}. One chain is values[None]; what was not sampled "
                "belongs in a group such as constant_data."
            )
    options = {"default_dims" if _is_legacy() else "sample_dims": sample_dims}
    with warnings.catch_warnings():
        # Short runs of many chains are no mistake here.
        warnings.filterwarnings("ignore", "More chains|Found chain dim", UserWarning)
        return _package("base").dict_to_dataset(
            dict(variables),
            coords=coords,
            dims=dims,
            # Dims of the data serve the log-likelihood too, which may have fewer.
            skip_event_dims="log_likelihood" in group,
            **options,
        )


def _check_name(name: str) -> None:
    """``name`` is neither a path in netCDF nor a dimension that all draws share."""
    if "/" in name or name in SAMPLE_DIMS:
        better = f"{name}_" if name in SAMPLE_DIMS else name.replace("/", ".")
        raise ValueError(
            "Names of groups and variables must not contain '/', nor be 'chain' or 'draw', "
            f"got {name!r}: use {better!r}."
        )


def ess(values: Any, method: EssMethod = "bulk", prob: float | None = None) -> Array:
    """Effective sample sizes, by ArviZ.

    Memory beyond ``values`` is bounded, whatever their number: a few blocks of 8 MB, and of draws
    on disk 128 MB. At 4 chains of 200 draws it takes about 0.5 ms per coordinate, and R-hat twice
    that.

    Args:
        values: ``[chain, draw, *shape]``, a tensor or array, perhaps mapped from a file. All is
            computed in float64.
        method: what the draws are to estimate: ``"bulk"`` of the rank-normalised values;
            ``"tail"``, the smaller one of the 5 % and the 95 % quantile; ``"mean"``, ``"sd"``,
            ``"median"``, or ``"quantile"``.
        prob: which quantile.

    Returns:
        ``[*shape]``; nan for coordinates that never change.

    Raises:
        ValueError: fewer than 4 draws per chain, or values that are not finite.

    >>> values = np.random.default_rng(0).normal(size=(4, 1000, 3))
    >>> ess(values).round(-3)
    array([4000., 4000., 4000.])
    """
    check_choice("method", method, ESS_METHODS)
    _check_prob(method, prob)
    # ArviZ 1.x has another default here.
    which = (0.05, 0.95) if method == "tail" else prob
    return _per_coordinate(values, "ess", method=method, prob=which)


def rhat(values: Any) -> Array:
    """R-hat, by ArviZ: rank-normalised, split, the larger one of bulk and folded.

    Args:
        values: as for ``ess``, of at least 2 chains.

    Returns:
        ``[*shape]``; nan for coordinates that never change, infinity where every chain stands
        still at another place.
    """
    return _per_coordinate(values, "rhat", min_chains=2, method="rank")


def mcse(values: Any, method: McseMethod = "mean", prob: float | None = None) -> Array:
    """Monte-Carlo standard errors of an estimate from draws, by ArviZ.

    Args:
        values: as for ``ess``.
        method: the estimate: ``"mean"``, ``"sd"``, ``"median"`` or ``"quantile"``.
        prob: which quantile.

    Returns:
        ``[*shape]``, in the units of ``values``; nan for coordinates that never change.
    """
    check_choice("method", method, MCSE_METHODS)
    _check_prob(method, prob)
    return _per_coordinate(values, "mcse", power=1, method=method, prob=prob)


def integrated_autocorrelation_time(values: Any) -> Array:
    """Integrated autocorrelation times in draws: how many draws are worth an independent one.

    ``1 + 2 sum_k rho_k``, the sum of the autocorrelations at lags k = 1, 2, ... truncated by
    Geyer's initial monotone sequence, as ArviZ computes it within and between chains:
    ``chains * draws / ess(values, "mean")``. For an AR(1) process of coefficient a it is
    ``(1 + a) / (1 - a)``. Multiply by ``thin`` for steps.

    Args:
        values: as for ``ess``.

    Returns:
        ``[*shape]``; nan for coordinates that never change.
    """
    size = ess(values, method="mean")
    chains, draws = np.shape(values)[:2]
    times: Array = chains * draws / size
    return times


def loo(log_likelihood: Any) -> Any:
    """Pareto-smoothed importance-sampling leave-one-out, by ArviZ.

    Args:
        log_likelihood: ``[chain, draw, datum]``.

    Returns:
        ArviZ's result, with the contribution and the Pareto k of each datum.
    """
    flat, _ = _flatten(log_likelihood, 1)
    _check_finite(flat)
    values = np.ascontiguousarray(np.moveaxis(_float64(flat), 0, -1))
    share = float(np.nanmean(ess(values, method="mean"))) / np.prod(values.shape[:2])
    tree = build({"log_likelihood": {"y": values}})
    return _package("stats").loo(tree, pointwise=True, reff=min(1.0, float(share)))


def _check_prob(method: str, prob: float | None) -> None:
    """``prob`` is a number in (0, 1) for a quantile, None for all else."""
    if method != "quantile" and prob is not None:
        raise ValueError(f"prob belongs to method='quantile', got prob={prob!r} for {method!r}.")
    if method == "quantile" and (prob is None or not is_number(prob) or not 0 < prob < 1):
        raise ValueError(f"method='quantile' needs prob, a number in (0, 1), got {prob!r}.")


def _per_coordinate(
    values: Any, statistic: str, *, power: int = 0, min_chains: int = 1, **options: Any
) -> Array:
    """An ArviZ statistic of every coordinate.

    Each is computed at a range of about 1, of which ``power`` says how the statistic depends on
    it: ArviZ takes a range below 1e-15 for none, and then reports the number of draws as ESS.
    Ranges change by powers of two, which is exact.
    """
    function = getattr(_package("stats"), statistic)
    dataset = import_module("xarray").Dataset
    flat, shape = _flatten(values, min_chains)
    _check_finite(flat)
    statistics = np.full(flat.shape[-1], np.nan)
    for part, block in _blocks(flat):
        low, high = block.min((1, 2)), block.max((1, 2))
        varies = high > low
        _, exponent = np.frexp(high[varies] / 2 - low[varies] / 2)
        scaled = np.ldexp(block[varies], -exponent[:, None, None])
        # Chains that stand still at different places: R-hat divides by zero.
        with np.errstate(divide="ignore", invalid="ignore"):
            result = function(dataset({"x": (("coordinate", *SAMPLE_DIMS), scaled)}), **options)
        statistics[part][varies] = np.ldexp(result["x"].to_numpy(), power * exponent)
    return statistics.reshape(shape)


def _flatten(values: Any, min_chains: int) -> tuple[Any, tuple[int, ...]]:
    """``values`` as ``[chain, draw, coordinate]``, without a copy if they allow it, and shape."""
    values = values if hasattr(values, "shape") else np.asarray(values)
    shape = tuple(values.shape)
    if len(shape) < 2 or shape[0] < min_chains or shape[1] < MIN_DRAWS:
        raise ValueError(
            f"values must be [chain, draw, ...] with at least {min_chains} chain(s) of at least "
            f"{MIN_DRAWS} draws, got shape {list(shape)}. Raise num_particles or num_draws; one "
            "chain as a vector is values[None]."
        )
    flat = values if len(shape) == 3 else values.reshape(*shape[:2], -1)
    return flat, shape[2:]


def _blocks(flat: Any) -> Iterator[tuple[slice, Array]]:
    """Runs of coordinates, each with its values ``[coordinate, chain, draw]`` in float64."""
    chains, draws, _ = flat.shape
    length = max(1, BLOCK_BYTES // (8 * chains * draws))
    for columns, values in panels(flat):
        for start in range(0, values.shape[-1], length):
            part = slice(columns.start + start, min(columns.start + start + length, columns.stop))
            yield part, _float64(values[..., start : start + length])


def _float64(values: Any) -> Array:
    """``values [chain, draw, coordinate]`` as float64, each coordinate contiguous."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"values must be real numbers, got {values.dtype}.")
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float64)


def _check_finite(flat: Any) -> None:
    """Neither NaN nor infinity, checked before minutes are spent on the first blocks."""
    bad, coordinates = 0, 0
    for _, block in _blocks(flat):
        counts = block.size // max(1, len(block)) - np.isfinite(block).sum((1, 2))
        bad, coordinates = bad + int(counts.sum()), coordinates + int((counts > 0).sum())
    if bad:
        raise ValueError(
            f"values must be finite, got {bad} NaN or infinite values in {coordinates} of "
            f"{flat.shape[-1]} coordinates. Leave out the chains that diverged, or sample again "
            "with a smaller step_size."
        )
