"""ArviZ 0.x and 1.x alike: run this file in an environment of each."""

from __future__ import annotations

import math
import tracemalloc
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from particlevi.diagnostics import arviz

LEGACY = find_spec("arviz_stats") is None
stats = import_module("arviz" if LEGACY else "arviz_stats")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def ar1(rng: np.random.Generator, coefficient: float, *shape: int) -> np.ndarray:
    """Stationary chains ``[chain, draw, ...]`` of unit variance."""
    noise = rng.standard_normal(shape)
    noise[:, 1:] *= math.sqrt(1 - coefficient**2)
    for t in range(1, shape[1]):
        noise[:, t] += coefficient * noise[:, t - 1]
    return noise


def group(idata: Any, name: str) -> xr.Dataset:
    node = idata[name]
    return node if LEGACY else node.to_dataset()


def groups(idata: Any) -> set[str]:
    return set(idata.groups()) if LEGACY else set(idata.children)


def direct(statistic: str, values: np.ndarray, **options: Any) -> np.ndarray:
    """What ArviZ itself says of ``[chain, draw, ...]``."""
    names = ["chain", "draw", *(f"d{i}" for i in range(values.ndim - 2))]
    dataset = xr.Dataset({"x": (names, np.asarray(values, dtype=np.float64))})
    return getattr(stats, statistic)(dataset, **options)["x"].to_numpy()


# Containers


def test_build_keeps_every_group() -> None:
    draws = np.zeros((2, 5, 3))
    idata = arviz.build(
        {
            "posterior": {"net.0.weight": np.zeros((2, 5, 3, 4)), "scale": draws[..., 0]},
            "sample_stats": {"lp": draws[..., 0], "diverging": draws[..., 0] > 0},
            "log_likelihood": {"y": np.zeros((2, 5, 7))},
            "posterior_predictive": {"y": np.zeros((2, 5, 7))},
            "observed_data": {"y": np.zeros(7)},
            "constant_data": {"x": np.zeros((7, 2))},
            "warmup_posterior": {"scale": np.zeros((2, 9))},
            "warmup_sample_stats": {"lp": np.zeros((2, 9))},
            "sgd_trace": {"loss": np.zeros((2, 5))},
            "sgd_trace_data": {"size": np.zeros(3)},
            "prior": {},
        }
    )
    assert type(idata).__name__ == ("InferenceData" if LEGACY else "DataTree")
    assert groups(idata) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
        "constant_data",
        "warmup_posterior",
        "warmup_sample_stats",
        "sgd_trace",
        "sgd_trace_data",
    }
    sizes = {
        (name, str(variable)): tuple(values.sizes.items())
        for name in groups(idata)
        for variable, values in group(idata, name).data_vars.items()
    }
    sampled = (("chain", 2), ("draw", 5))
    rows = ("net.0.weight_dim_0", 3), ("net.0.weight_dim_1", 4)
    assert sizes["posterior", "net.0.weight"] == (*sampled, *rows)
    assert sizes["log_likelihood", "y"] == (*sampled, ("y_dim_0", 7))
    assert sizes["observed_data", "y"] == (("y_dim_0", 7),)
    assert sizes["constant_data", "x"] == (("x_dim_0", 7), ("x_dim_1", 2))
    assert sizes["warmup_posterior", "scale"] == (("chain", 2), ("draw", 9))
    assert sizes["sgd_trace", "loss"] == sampled
    assert sizes["sgd_trace_data", "size"] == (("size_dim_0", 3),)


def test_build_names_dimensions() -> None:
    idata = arviz.build(
        {
            "posterior": {"weight": np.arange(24.0).reshape(2, 3, 4)},
            "observed_data": {"y": np.zeros((6, 2))},
            "log_likelihood": {"y": np.zeros((2, 3, 6))},
        },
        coords={"feature": list("abcd"), "unused": [1, 2]},
        dims={"weight": ["feature"], "y": ["datum", "output"]},
    )
    weight = group(idata, "posterior")["weight"]
    assert weight.sel(chain=1, draw=0, feature="c").item() == 14
    assert group(idata, "observed_data")["y"].dims == ("datum", "output")
    assert group(idata, "log_likelihood")["y"].dims == ("chain", "draw", "datum")


def test_build_says_nothing_of_more_chains_than_draws() -> None:
    idata = arviz.build({"posterior": {"x": np.zeros((50, 4))}})
    assert dict(group(idata, "posterior").sizes) == {"chain": 50, "draw": 4}


def test_netcdf_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((2, 5, 3)).astype(np.float32)
    diverging = np.array([[True, False] * 2 + [False]] * 2)
    attrs = {
        "inference_library": "particlevi",
        "empty": "",
        "seed": 2**63 - 1,
        "step_size": 1e-3,
        "float32": np.float32(0.5),
        "int64": np.int64(3),
        "interacting": False,
        "none": None,
        "chains": [0, 2],
        "settings": {"friction": 1.0, "scales": np.arange(2), "dtype": torch.float32},
    }
    idata = arviz.build(
        {
            "posterior": {"net.0.weight": weight},
            "sample_stats": {"diverging": diverging},
            "warmup_posterior": {"net.0.weight": weight},
            "sgd_trace": {"loss": weight[..., 0]},
            "observed_data": {"y": np.arange(4)},
        },
        attrs=attrs,
    )
    path = tmp_path / "draws.nc"
    idata.to_netcdf(path, engine="h5netcdf")
    back = (
        stats.from_netcdf(path, engine="h5netcdf")
        if LEGACY
        else xr.open_datatree(path, engine="h5netcdf")
    )
    assert groups(back) == groups(idata)
    loaded = group(back, "posterior")["net.0.weight"]
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, weight)
    assert group(back, "sample_stats")["diverging"].dtype == bool
    assert np.array_equal(group(back, "sample_stats")["diverging"], diverging)
    assert {name: back.attrs[name] for name in attrs} == {
        **attrs,
        "interacting": "false",
        "none": "null",
        "chains": "[0, 2]",
        "settings": '{"friction": 1.0, "scales": [0, 1], "dtype": "torch.float32"}',
    }
    back.close()


def test_arviz_summary_works_on_it(rng: np.random.Generator) -> None:
    idata = arviz.build({"posterior": {"net.0.bias": rng.standard_normal((4, 100, 2))}})
    table = stats.summary(idata, kind="diagnostics", round_to="none")
    assert list(table.index) == ["net.0.bias[0]", "net.0.bias[1]"]
    assert (table["r_hat"] < 1.05).all()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"posterior": {"net/weight": np.zeros((2, 5))}}, "use 'net.weight'"),
        ({"a/b": {"x": np.zeros((2, 5))}}, r"use 'a\.b'"),
        ({"posterior": {"draw": np.zeros((2, 5))}}, "use 'draw_'"),
        ({"posterior": {"x": np.zeros(5)}}, r"posterior/x must be .* got shape \[5\]"),
    ],
)
def test_build_rejects(groups: dict[str, dict[str, np.ndarray]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arviz.build(groups)


# Statistics


@pytest.mark.parametrize("shape", [(4, 30), (1, 31, 5), (3, 30, 2, 3)])
@pytest.mark.parametrize(
    ("method", "prob", "same"),
    [
        ("bulk", None, None),
        ("tail", None, (0.05, 0.95)),
        ("mean", None, None),
        ("sd", None, None),
        ("median", None, None),
        ("quantile", 0.2, 0.2),
    ],
)
def test_ess_is_arviz(
    rng: np.random.Generator, shape: tuple[int, ...], method: str, prob: Any, same: Any
) -> None:
    values = ar1(rng, 0.5, *shape)
    found = arviz.ess(values, method=method, prob=prob)
    assert found.shape == shape[2:]
    assert np.array_equal(found, direct("ess", values, method=method, prob=same))


def test_rhat_is_arviz(rng: np.random.Generator) -> None:
    values = ar1(rng, 0.9, 3, 30, 2, 3)
    assert np.array_equal(arviz.rhat(values), direct("rhat", values))


@pytest.mark.parametrize(
    ("method", "prob"), [("mean", None), ("sd", None), ("median", None), ("quantile", 0.9)]
)
def test_mcse_is_arviz(rng: np.random.Generator, method: str, prob: float | None) -> None:
    values = 3 + 7 * ar1(rng, 0.5, 3, 30, 2, 3)
    found = arviz.mcse(values, method=method, prob=prob)
    assert np.array_equal(found, direct("mcse", values, method=method, prob=prob))


@pytest.mark.parametrize("coefficient", [-0.3, 0.0, 0.5, 0.9])
def test_integrated_autocorrelation_time_of_ar1(
    rng: np.random.Generator, coefficient: float
) -> None:
    found = arviz.integrated_autocorrelation_time(ar1(rng, coefficient, 100, 2000, 10))
    assert found.mean() == pytest.approx((1 + coefficient) / (1 - coefficient), rel=0.05)


def test_rhat_tells_mixed_from_shifted_chains(rng: np.random.Generator) -> None:
    values = rng.standard_normal((4, 500, 20))
    assert np.abs(arviz.rhat(values) - 1).max() < 0.02
    values[0] += 4
    assert arviz.rhat(values).min() > 1.5


def test_blocks_do_not_change_anything(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ar1(rng, 0.5, 2, 20, 3, 5)
    whole = arviz.ess(values), arviz.rhat(values), arviz.mcse(values)
    for size in (1, 4 * 2 * 20 * 8):
        monkeypatch.setattr(arviz, "BLOCK_BYTES", size)
        parts = arviz.ess(values), arviz.rhat(values), arviz.mcse(values)
        assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    values = np.zeros((4, 25, 20_000), dtype=np.float32)
    values[..., ::100] = rng.standard_normal((4, 25, 200))
    arviz.ess(values[..., :1])
    monkeypatch.setattr(arviz, "BLOCK_BYTES", 2**18)
    tracemalloc.start()
    found = arviz.ess(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.isfinite(found).sum() == 200
    assert peak < found.nbytes + 8 * 2**18


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_tensors_are_computed_in_float64(dtype: torch.dtype) -> None:
    values = (10 * torch.randn(3, 40, 2, 2, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = values.double().numpy()
    assert np.array_equal(arviz.rhat(values), arviz.rhat(exact))
    assert np.array_equal(arviz.mcse(values), arviz.mcse(exact))


def test_sources_of_values(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.standard_normal((2, 20, 6))
    np.save(tmp_path / "values.npy", values)
    sources = [
        np.load(tmp_path / "values.npy", mmap_mode="r"),
        torch.from_numpy(values).requires_grad_(),
        torch.from_numpy(values.transpose(2, 1, 0).copy()).permute(2, 1, 0),
        values.tolist(),
        xr.DataArray(values),
    ]
    expected = arviz.ess(values)
    for source in sources:
        assert np.array_equal(arviz.ess(source), expected)


def test_constant_coordinates_are_nan(rng: np.random.Generator) -> None:
    values = rng.standard_normal((4, 50, 3))
    values[..., 1] = 0.1
    for found in (
        *(arviz.ess(values, method) for method in ("bulk", "tail", "mean", "sd")),
        arviz.rhat(values),
        arviz.mcse(values),
        arviz.integrated_autocorrelation_time(values),
    ):
        assert np.array_equal(np.isnan(found), [False, True, False])
    assert np.isnan(arviz.ess(values[..., 1:2])).all()


def test_rhat_of_chains_that_stand_still_is_infinite() -> None:
    values = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 50, 2))
    assert np.isposinf(arviz.rhat(values)).all()
    assert (arviz.ess(values) < 10).all()


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-60, 2.0**60, 2.0**1000])
def test_units_do_not_matter(rng: np.random.Generator, scale: float) -> None:
    values = ar1(rng, 0.9, 4, 50, 3)
    for method in ("bulk", "tail", "mean", "sd"):
        assert np.array_equal(arviz.ess(values * scale, method), arviz.ess(values, method))
    assert np.array_equal(arviz.rhat(values * scale), arviz.rhat(values))
    assert np.array_equal(arviz.mcse(values * scale), arviz.mcse(values) * scale)


def test_no_coordinates() -> None:
    assert arviz.ess(np.zeros((4, 50, 0))).shape == (0,)
    assert arviz.rhat(torch.zeros(4, 50, 2, 0)).shape == (2, 0)


@pytest.mark.parametrize("function", [arviz.ess, arviz.rhat, arviz.mcse])
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.zeros((4, 3, 2)), ValueError, r"at least 4 draws, got shape \[4, 3, 2\]"),
        (np.zeros((0, 9, 2)), ValueError, r"got shape \[0, 9, 2\]"),
        (np.zeros(9), ValueError, r"got shape \[9\]. .* values\[None\]"),
        (3.0, ValueError, r"got shape \[\]"),
        (np.full((2, 9, 3), np.nan), ValueError, "54 NaN or infinite values in 3 of 3"),
        (np.zeros((2, 9, 3), dtype=complex), TypeError, "real numbers, got complex128"),
        (np.full((2, 9), "a"), TypeError, "real numbers, got <U1"),
    ],
)
def test_statistics_reject(
    function: Any, values: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(values)


def test_non_finite_values_are_counted() -> None:
    values = torch.zeros(2, 9, 5)
    values[0, 1, 2], values[1, 3, 2], values[1, 8, 4] = math.nan, math.inf, -math.inf
    with pytest.raises(ValueError, match="got 3 NaN or infinite values in 2 of 5 coordinates"):
        arviz.ess(values)


def test_rhat_needs_two_chains() -> None:
    with pytest.raises(ValueError, match=r"at least 2 chain.* got shape \[1, 9, 5\]"):
        arviz.rhat(np.zeros((1, 9, 5)))


@pytest.mark.parametrize("function", [arviz.ess, arviz.mcse])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "local"}, "method must be one of .*, got 'local'"),
        ({"method": "quantile"}, "needs prob.*, got None"),
        ({"method": "quantile", "prob": 1.0}, "needs prob.*, got 1.0"),
        ({"method": "mean", "prob": 0.5}, "prob belongs to method='quantile'"),
    ],
)
def test_methods_reject(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(np.zeros((2, 9)), **options)
