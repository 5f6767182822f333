"""What a step of many convolutional nets costs, by the road that it takes.

    python -m benchmarks.convolutions [--device cuda] [--particles 1 8] [--json FILE]

Energy and gradient of a ResNet-20 in P particles, each with a batch of its own:

- ``vmap``: all particles at once; their convolutions become grouped ones;
- ``loop``: one particle after the other forward, then one backward of all;
- ``chunk=1``: one particle after the other, forward and backward, so that memory holds one;
- ``channels_last``: the same with images and weights in that order of memory;
- ``unfold``: convolutions as batched matrix products of patches;
- ``graph`` (CUDA): the roads recorded once as a CUDA graph and replayed, the loop with one stream
  per particle;
- ``compile``: torch.compile of the road.

Times are medians over interleaved repetitions; on a CPU of CPU time, so that other programs on the
machine disturb less. The ratio is to P single steps, one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples._resnet import ResNet

Step = Callable[[], Tensor]


class Unfolded(nn.Module):
    """A convolution as a product of its weights with patches."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.kernel = conv.weight, conv.kernel_size
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        height = (x.shape[-2] + 2 * self.padding[0] - self.kernel[0]) // self.stride[0] + 1
        patches = functional.unfold(x, self.kernel, 1, self.padding, self.stride)
        found = self.weight.flatten(1) @ patches
        return found.unflatten(-1, (height, -1))


def unfolded(net: nn.Module) -> nn.Module:
    """The net with its convolutions as products."""
    for name, child in net.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(net, name, Unfolded(child))
        else:
            unfolded(child)
    return net


class Case:
    """P nets and their batches, and the roads through them."""

    def __init__(self, particles: int, batch: int, device: str, dtype: torch.dtype | None):
        torch.manual_seed(0)
        self.net = ResNet().to(device)
        self.products = unfolded(ResNet()).to(device)
        self.device, self.dtype = device, dtype
        self.weights = {
            name: torch.stack([p.detach() + 0.01 * torch.randn_like(p) for _ in range(particles)])
            for name, p in self.net.named_parameters()
        }
        self.x = torch.randn(particles, batch, 3, 32, 32, device=device)
        self.y = torch.randint(10, (particles, batch), device=device)

    def energy(self, net: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        kind = torch.device(self.device).type
        with torch.autocast(kind, self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            outputs = torch.func.functional_call(net, weights, (x,))
        return functional.cross_entropy(outputs.float(), y, reduction="sum")

    def gradient(self, weights: dict[str, Tensor], energy: Callable[..., Tensor]) -> Tensor:
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        grads = torch.autograd.grad(energy(leaves), list(leaves.values()))
        return torch.cat([g.flatten() for g in grads])

    def vmap(self, net: nn.Module | None = None) -> Tensor:
        lifted = torch.vmap(lambda w, x, y: self.energy(self.net if net is None else net, w, x, y))
        return self.gradient(self.weights, lambda w: lifted(w, self.x, self.y).sum())

    def vmap_last(self) -> Tensor:
        x = self.x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = x.unflatten(0, self.x.shape[:2])
        lifted = torch.vmap(lambda w, x, y: self.energy(self.net, w, x, y))
        return self.gradient(self.weights, lambda w: lifted(w, x, self.y).sum())

    def products_road(self) -> Tensor:
        return self.vmap(self.products)

    def loop(self) -> Tensor:
        def energy(weights: dict[str, Tensor]) -> Tensor:
            parts = [
                self.energy(self.net, {n: w[i] for n, w in weights.items()}, x, y)
                for i, (x, y) in enumerate(zip(self.x, self.y, strict=True))
            ]
            return torch.stack(parts).sum()

        return self.gradient(self.weights, energy)

    def one(self, number: int, last: bool = False) -> Tensor:
        x = self.x[number]
        weights = {n: w[number] for n, w in self.weights.items()}
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
            weights = {
                n: w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w
                for n, w in weights.items()
            }
        return self.gradient(weights, lambda w: self.energy(self.net, w, x, self.y[number]))

    def chunk(self) -> Tensor:
        return torch.stack([self.one(i) for i in range(len(self.x))])

    def chunk_last(self) -> Tensor:
        return torch.stack([self.one(i, last=True) for i in range(len(self.x))])

    def streams(self) -> Tensor:
        """One stream per particle; meant to be recorded as a graph."""
        here = torch.cuda.current_stream()
        found = []
        for i in range(len(self.x)):
            stream = _stream(i)
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                found.append(self.one(i))
        for i in range(len(self.x)):
            here.wait_stream(_stream(i))
        return torch.stack(found)


_streams: dict[int, Any] = {}


def _stream(number: int) -> Any:
    if number not in _streams:
        _streams[number] = torch.cuda.Stream()
    return _streams[number]


def graphed(step: Step) -> Step:
    """A step recorded once and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay


def roads(case: Case, compile: bool) -> dict[str, Callable[[], Step]]:
    """What makes each road, by name."""
    cuda = case.device != "cpu"
    found: dict[str, Callable[[], Step]] = {
        "chunk=1": lambda: case.chunk,
        "vmap": lambda: case.vmap,
        "vmap, channels_last": lambda: case.vmap_last,
        "unfold": lambda: case.products_road,
        "loop": lambda: case.loop,
        "chunk=1, channels_last": lambda: case.chunk_last,
    }
    if cuda:
        found |= {
            "graph of vmap": lambda: graphed(case.vmap),
            "graph of unfold": lambda: graphed(case.products_road),
            "graph of chunk=1": lambda: graphed(case.chunk),
            "graph of chunk=1, channels_last": lambda: graphed(case.chunk_last),
            "graph of streams": lambda: graphed(case.streams),
        }
    if compile:
        found |= {
            "compile of vmap": lambda: compiled(case, lifted=True),
            "compile of chunk=1": lambda: compiled(case, lifted=False),
        }
        if cuda:
            found["graph of compile of vmap"] = lambda: graphed(compiled(case, lifted=True))
    return found


def compiled(case: Case, lifted: bool) -> Step:
    """Energy and gradient by ``torch.func.grad``, compiled, as the library does."""

    def energy(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        if not lifted:
            return case.energy(case.net, weights, x, y)
        each = torch.vmap(lambda w, a, b: case.energy(case.net, w, a, b))
        return each(weights, x, y).sum()

    step = torch.compile(torch.func.grad(energy), fullgraph=True, dynamic=False)

    def run() -> Tensor:
        with torch.no_grad():
            if lifted:
                found = [step(case.weights, case.x, case.y)]
            else:
                found = [
                    step({n: w[i] for n, w in case.weights.items()}, case.x[i], case.y[i])
                    for i in range(len(case.x))
                ]
            return torch.cat([g.flatten() for each in found for g in each.values()])

    return run


def clock(device: str) -> float:
    """Seconds: of the CPU's work, or of the wall once the GPU is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def memory(device: str) -> float:
    """Peak MB on the GPU since the last call."""
    if device == "cpu":
        return float("nan")
    peak = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure(args: argparse.Namespace, particles: int, dtype: torch.dtype | None) -> list[dict]:
    """Medians of all roads at one P."""
    case = Case(particles, args.batch_size, args.device, dtype)
    reference = case.chunk().double()
    ready: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, make in roads(case, args.compile).items():
        if args.roads and name not in args.roads:
            continue
        row: dict[str, Any] = {"road": name, "P": particles, "dtype": str(dtype), "times": []}
        rows[name] = row
        try:
            began = time.perf_counter()
            step = make()
            memory(args.device)
            found = step().flatten().double()
            step()
            clock(args.device)
            row["first"] = time.perf_counter() - began
            row["peak_mb"] = memory(args.device)
            row["error"] = error_of(case, name, found, reference)
            ready[name] = step
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    for _ in range(args.repetitions):
        for name, step in ready.items():
            began = clock(args.device)
            step()
            rows[name]["times"].append(clock(args.device) - began)
    return list(rows.values())


def error_of(case: Case, name: str, found: Tensor, each: Tensor) -> float:
    """Relative distance from the gradients of one particle after the other."""
    if "chunk" in name or "streams" in name:
        expected = each.flatten()
    else:  # tensor by tensor, each of all particles
        sizes = [w[0].numel() for w in case.weights.values()]
        expected = torch.cat([part.flatten() for part in each.split(sizes, 1)])
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    """Time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="also under autocast to bfloat16")
    parser.add_argument("--roads", nargs="*", help="only these")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    where = (
        torch.cuda.get_device_name()
        if args.device != "cpu"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{where}, torch {torch.__version__}, batch {args.batch_size} per particle")
    everything: list[dict] = []
    single: dict[str, float] = {}
    for dtype in [None, torch.bfloat16] if args.bfloat16 else [None]:
        for particles in args.particles:
            for row in measure(args, particles, dtype):
                row["where"] = where
                everything.append(row)
                if "failed" in row:
                    print(f"{row['road']:34} P={particles} failed: {row['failed']}", flush=True)
                    continue
                row["median"] = middle = statistics.median(row.pop("times"))
                if particles == 1 and row["road"] == "chunk=1":
                    single[row["dtype"]] = middle
                base = single.get(row["dtype"], float("nan"))
                print(
                    f"{row['road']:34} P={particles} {row['dtype'][6:]:9} {1e3 * middle:9.2f} ms "
                    f"{middle / (particles * base):6.2f} x P single steps, peak "
                    f"{row['peak_mb']:.0f} MB, first {row['first']:.1f} s, error "
                    f"{row.get('error', float('nan')):.1e}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
