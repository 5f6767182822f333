"""What draws on disk cost: memory, time beside a step, and room, of nets that hardly fit.

``python -m benchmarks.disk`` runs everything; ``--only memory|pieces`` one part. Each part of
``memory`` runs in a process of its own and reports the peak of its resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import particlevi as pvi
from particlevi.drawset.lazy import PANEL_BYTES


def net(width: int, depth: int) -> torch.nn.Module:
    """A net of about ``depth * width**2`` weights."""
    layers: list[torch.nn.Module] = [torch.nn.Linear(10, width), torch.nn.Tanh()]
    for _ in range(depth):
        layers += [torch.nn.Linear(width, width), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 1))


def peak() -> float:
    """Largest resident set so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def one(config: dict) -> dict:
    """A run, with its seconds and its peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    potential = pvi.from_module(
        net(config["width"], config["depth"]), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=256
    )
    start = potential.init(config["chains"])
    run = {
        "step_size": 1e-7,
        "batch_size": config["batch"],
        "initial": start,
        "num_draws": config["draws"],
        "thin": config["thin"],
        "progress": False,
        "batching": pvi.data.Minibatches("replacement", shared=True),
    }
    if config["path"]:
        run["store"] = config["path"]
    else:
        run["store"] = pvi.storage.InMemory(keep=torch.tensor([0]))
    writing = [0.0]
    if config["path"]:
        _time_writes(writing)
    began, used = time.perf_counter(), time.process_time()
    draws = pvi.sample(pvi.sghmc(potential), (x, x[:, :1]), **run)
    seconds = time.perf_counter() - began
    return {
        "D": potential.num_params,
        "seconds": seconds,
        "cpu": time.process_time() - used,
        "writing": writing[0],
        "peak_mb": peak(),
        "draws": list(draws.particles.shape),
    }


def _time_writes(writing: list[float]) -> None:
    from particlevi.storage.diskstore import DiskStore

    append = DiskStore.append

    def timed(self, *arguments):
        began = time.perf_counter()
        append(self, *arguments)
        writing[0] += time.perf_counter() - began

    DiskStore.append = timed


def child(config: dict) -> dict:
    """``one`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.disk", "--child", json.dumps(config)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory(args: argparse.Namespace) -> None:
    """Peak above a run that keeps one number per draw, and the share of time that writing takes.

    Draws are written by a thread. What it costs is told in three ways: the seconds that the loop
    waits in ``append``, the seconds of a step beside those of the other run, which tell what the
    thread takes from the steps, and CPU seconds of all threads.
    """
    base = {
        "width": args.width,
        "depth": 10,
        "chains": args.chains,
        "draws": args.draws,
        "thin": 1,
        "batch": 32,
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bare = child({**base, "path": "", "draws": min(5, args.draws)})
        kept = child({**base, "path": f"{folder}/draws.zarr"})
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    step, wait = (kept["seconds"] - kept["writing"]) / args.draws, kept["writing"] / args.draws
    few = min(5, args.draws)
    print(
        f"D={kept['D']:,}, {args.chains} chains, {args.draws} draws: peak {kept['peak_mb']:.0f} "
        f"MB, {kept['peak_mb'] - bare['peak_mb']:.0f} MB above a run that keeps one number; a "
        f"step waits {wait:.2f} s for its draw ({wait / step:.1%}) and takes {step:.2f} s beside "
        f"{bare['seconds'] / few:.2f} s of that run; {kept['cpu'] / args.draws:.2f} s of CPU "
        f"beside {bare['cpu'] / few:.2f} s; {size / 1e9:.2f} GB on disk",
        flush=True,
    )


def pieces(args: argparse.Namespace) -> None:
    """Functions of draws of 1e8 numbers: written piece by piece, read piece by piece."""
    size, chains, draws = args.size, 2, 4
    flat = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=size)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = f"{folder}/draws.zarr"
        began = time.perf_counter()
        found = pvi.sample(
            pvi.sgld(flat),
            step_size=0.5,
            num_particles=chains,
            num_draws=draws,
            progress=False,
            store=path,
        )
        run, before = time.perf_counter() - began, peak()
        del flat
        loaded = pvi.load(path)
        began = time.perf_counter()
        sizes = loaded.ess("projections", num=4)
        seconds = time.perf_counter() - began
        print(
            f"D={size:,}, {chains} chains, {draws} draws: run {run:.0f} s, peak {before:.0f} MB; "
            f"ESS of 4 projections {sizes.round(1)} in {seconds:.0f} s, reading "
            f"{PANEL_BYTES / 1e6:.0f} MB at a time, peak of the process {peak():.0f} MB; "
            f"{found.particles}",
            flush=True,
        )


def main() -> None:
    """All parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["memory", "pieces"])
    parser.add_argument("--child")
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--size", type=int, default=100_000_000)
    parser.add_argument("--folder", help="where the draws go for the time being")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one(json.loads(args.child))))
        return
    for name, part in {"memory": memory, "pieces": pieces}.items():
        if args.only in (None, name):
            part(args)


if __name__ == "__main__":
    main()
