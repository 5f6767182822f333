"""Products with the Hessian and the Gauss-Newton matrix: the same values, and the time of each.

    pip install curvlinops-for-pytorch pyhessian hessian-eigenthings
    python benchmarks/curvature_peers.py

One process, one net at a time; processor time of the fastest of several repetitions, in gradients.
Peers that are not installed are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from particlevi.curvature import curvature_operator, gradient_squares
from particlevi.potentials.layout import Layout

Product = Callable[[Tensor], Tensor]
CE = nn.functional.cross_entropy


def nets():
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 100), nn.Tanh(),
                        nn.Linear(100, 10))  # fmt: skip
    yield "perceptron", mlp, torch.randn(1000, 200)
    conv = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip
    yield "convolution", conv, torch.randn(500, 1, 14, 14)


def seconds(act: Callable[[], object], repeats: int = 7) -> float:
    act()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        act()
        found.append(time.process_time() - start)
    return min(found)


def ours(net: nn.Module, x: Tensor, y: Tensor, kind: str, chunk: int) -> Product:
    return curvature_operator(net, (x, y), CE, kind=kind, chunk_size=chunk).matvec


def curvlinops(net: nn.Module, x: Tensor, y: Tensor, kind: str) -> Product:
    import curvlinops

    make = {
        "hessian": curvlinops.HessianLinearOperator,
        "gauss_newton": curvlinops.GGNLinearOperator,
    }
    params = [p for p in net.parameters() if p.requires_grad]
    operator = make[kind](net, nn.CrossEntropyLoss(), params, [(x, y)], check_deterministic=False)
    return lambda v: operator @ v


def eigenthings(net: nn.Module, x: Tensor, y: Tensor, kind: str) -> Product:
    import hessian_eigenthings as he

    if kind == "hessian":
        return he.HessianOperator(net, [(x, y)], lambda m, b: CE(m(b[0]), b[1])).matvec
    forward = lambda m, b: m(b[0])  # noqa: E731
    return he.GGNOperator(net, [(x, y)], forward, lambda o, b: CE(o, b[1])).matvec


def pyhessian(net: nn.Module, x: Tensor, y: Tensor, kind: str) -> Product:
    import pyhessian

    if kind != "hessian":
        raise ImportError("PyHessian has the Hessian only.")
    operator = pyhessian.hessian(net, nn.CrossEntropyLoss(), dataloader=[(x, y)], cuda=False)
    layout = Layout({n: tuple(p.shape) for n, p in net.named_parameters()})

    def product(v: Tensor) -> Tensor:
        parts = list(layout.unravel(v).values())
        return torch.cat([each.reshape(-1) for each in operator.dataloader_hv_product(parts)[1]])

    return product


def peers(net: nn.Module, x: Tensor, y: Tensor, kind: str) -> dict[str, Callable[[], Product]]:
    return {
        "particlevi, graph kept": lambda: ours(net, x, y, kind, len(x)),
        "particlevi, two chunks": lambda: ours(net, x, y, kind, (len(x) + 1) // 2),
        "curvlinops": lambda: curvlinops(net, x, y, kind),
        "hessian-eigenthings": lambda: eigenthings(net, x, y, kind),
        "PyHessian": lambda: pyhessian(net, x, y, kind),
    }


def compare(net: nn.Module, x: Tensor, y: Tensor, kind: str, v: Tensor, unit: float) -> None:
    first: Tensor | None = None
    for library, make in peers(net, x, y, kind).items():
        try:
            product = make()
            found = product(v).detach().reshape(-1)
        except ImportError:
            continue
        first = found if first is None else first
        off = float((found - first).norm() / first.norm())
        taken = seconds(partial(product, v)) / unit
        print(f"  {kind:13} {library:24} {taken:6.2f} gradients, differs by {off:.1e}")


def study(name: str, net: nn.Module, x: Tensor) -> None:
    y = torch.arange(len(x)) % 10
    net.eval()

    def gradient() -> None:
        net.zero_grad()
        CE(net(x), y).backward()

    unit = seconds(gradient)
    size = sum(p.numel() for p in net.parameters())
    print(f"{name}, D = {size}, N = {len(x)}, one gradient {1e3 * unit:.1f} ms")
    v = torch.randn(size)
    for kind in ("hessian", "gauss_newton"):
        compare(net, x, y, kind, v, unit)
    layout = Layout({n: tuple(p.shape) for n, p in net.named_parameters()})
    theta = layout.ravel({n: p.detach() for n, p in net.named_parameters()})
    squares = seconds(lambda: gradient_squares(net, layout, CE, theta, (x, y))) / unit
    print(f"  squares of per-sample gradients    {squares:6.2f} gradients")
    operator = curvature_operator(net, (x, y), CE)
    columns = torch.randn(size, 16)
    many = seconds(lambda: operator.matmat(columns), 3) / unit
    each = seconds(lambda: [operator.matvec(c) for c in columns.T], 3) / unit
    print(f"  16 columns at once {many:6.1f}, one by one {each:6.1f} gradients")


def main() -> None:
    for name, net, x in nets():
        study(name, net, x)


if __name__ == "__main__":
    main()
