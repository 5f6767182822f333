"""Draws on disk beside those that nutpie writes: room, and one reader for both.

``python -m benchmarks.disk_peer`` (with ``pip install nutpie``, 0.16.8 or later; seconds). Both
sample a normal in D dimensions and write the same number of draws of as many chains in double
precision. A row tells the bytes of the array of draws and of its group of statistics, and how long
``xarray`` takes to open the store and to read all draws.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray

import particlevi as pvi


def by_nutpie(path: Path, size: int, chains: int, draws: int) -> None:
    """Its sampler, to its store."""
    import nutpie
    from nutpie._lib import store
    from nutpie.compiled_pyfunc import from_pyfunc

    def density() -> Any:
        return lambda x: (-0.5 * float(x @ x), -x)

    def named(*_: Any, **__: Any) -> Any:
        return lambda x: {"theta": x}

    path.mkdir()
    kinds, shapes = [np.dtype("f8")], [(size,)]
    nutpie.sample(
        from_pyfunc(size, density, named, kinds, shapes, ["theta"]),
        draws=draws,
        tune=100,
        chains=chains,
        cores=1,
        seed=0,
        save_warmup=False,
        progress_bar=False,
        zarr_store=store.LocalStore(str(path)),
    )


def by_particlevi(path: Path, size: int, chains: int, draws: int, compress: bool) -> None:
    """SGHMC, to a store of this package."""
    normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), size, dtype=torch.float64)
    pvi.sample(
        pvi.sghmc(normal),
        step_size=0.5,
        num_particles=chains,
        num_draws=draws,
        progress=False,
        store=pvi.storage.OnDisk(path, compress=compress),
    )


def size_of(path: Path) -> float:
    """Of all files in a folder, in MB."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=300)
    args = parser.parse_args()
    shape = (args.size, args.chains, args.draws)
    print(
        f"{'written by':28}{'draws [MB]':>12}{'statistics [MB]':>17}"
        f"{'open [s]':>10}{'read [s]':>10}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, write in {
            "nutpie": by_nutpie,
            "particlevi": lambda *given: by_particlevi(*given, False),
            "particlevi, compress=True": lambda *given: by_particlevi(*given, True),
        }.items():
            path = Path(folder, name)
            write(path, *shape)
            began = time.perf_counter()
            found = xarray.open_datatree(path, engine="zarr", consolidated=name != "nutpie")
            opened = time.perf_counter()
            theta = found["posterior"]["theta"]
            assert theta.dims == ("chain", "draw", "theta_dim_0")
            assert np.isfinite(theta.values).all()
            print(
                f"{name:28}{size_of(path / 'posterior' / 'theta'):12.2f}"
                f"{size_of(path / 'sample_stats'):17.2f}{opened - began:10.2f}"
                f"{time.perf_counter() - opened:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
