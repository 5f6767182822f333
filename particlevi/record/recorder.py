"""The recorder: hooks on an optimiser that write down where the training goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from particlevi import _html
from particlevi._checks import check_fraction, check_has, check_positive_int
from particlevi.diagnostics import arviz
from particlevi.diagnostics.temperatures import Temperature
from particlevi.draws import Draws
from particlevi.drawset.parts import raveled, warn_of_others
from particlevi.potentials.layout import Layout
from particlevi.potentials.potential import ModelPotential
from particlevi.record.iterates import Iterates
from particlevi.record.probes import (
    Loss,
    Noise,
    edge_of_stability,
    gradient_noise,
    load_probes,
    running_statistics,
    top_curvature,
    trainable,
)

__all__ = ["Recorder", "Status"]

_WATCHED = 256
_PAIR_BYTES = 10**8
_FIRST_PROBE = 45.0  # of both probes, in steps, before they have been timed
_LOOKS = 20
_SHARE = 0.3  # of the budget, each for points and for probes; the rest is what no clock inside sees


class Status(NamedTuple):
    """How a training loop stands.

    Attributes:
        steps: made so far, under the recorder.
        records: of them that were kept.
        cost: share of the time between the first and the last step that the recorder took.
        rate: the learning rate, the largest of the groups.
        gradient_norm: of the last record.
        noise: gradient noise at the last probe, None without ``loss``.
        curvature: the largest one at the last probe, NaN without ``loss``.
        edge: of stability, for that curvature; NaN for optimisers other than SGD.
    """

    steps: int
    records: int
    cost: float
    rate: float
    gradient_norm: float
    noise: Noise | None
    curvature: float
    edge: float

    def __str__(self) -> str:
        cost = "" if math.isnan(self.cost) else f", cost {self.cost:.1%}"
        slope = self.gradient_norm
        parts = [
            f"{self.steps} steps, {self.records} records{cost}",
            f"rate {self.rate:.3g}" + ("" if math.isnan(slope) else f", gradient norm {slope:.3g}"),
        ]
        if self.noise is not None:
            parts.append(
                f"gradient noise: trace {self.noise.trace:.3g} +- {self.noise.error:.2g}, "
                f"scale {self.noise.scale:.3g} data"
            )
        if not math.isnan(self.curvature):
            edge = "" if math.isnan(self.edge) else f" (edge of stability {self.edge:.3g})"
            parts.append(f"largest curvature {self.curvature:.3g}{edge}")
        return "; ".join(parts)

    def __repr__(self) -> str:
        return f"Status({self})"


@final
class Recorder:
    """Write down a training loop: iterates, norms, gradient noise, curvature, temperature.

    It hangs on the step hooks of the optimiser, and leaves parameters, gradients, buffers and
    random numbers as they are: the training is bit for bit that without it. What is recorded of a
    step is the point after it, its rate and the norms of gradient and update; with ``loss`` and
    ``probe``, from time to time, the gradient noise (``gradient_noise``) and the largest curvature
    (``top_curvature``) at the present weights.

    The gradient of a step is the one that is there when the step begins: an optimiser that
    evaluates a closure, such as ``LBFGS``, has another.

    By default it takes at most a tenth of the time: probes wait until their cost fits the
    ``budget``, and records become rarer. ``every`` and ``probe_every`` set fixed intervals. On an
    accelerator the time counted is that of the host.

    Args:
        module: what is trained.
        optimizer: from ``torch.optim``, or made like those.
        every: keep the point after every so many steps; ten, and more where the budget asks for it,
            if absent. It doubles where ``max_bytes`` are full.
        keep: all parameters, or so many coordinates of them, picked at random.
        loss: from a batch to the mean training loss of ``module`` on it.
        probe: a batch for ``loss``, drawn at random from the training data, on the module's device.
        probe_every: probe at every so many steps, whatever it costs.
        budget: the share of the time that recording may take.
        max_bytes: of the points kept.

    Raises:
        TypeError: an optimiser without hooks on its steps.
        ValueError: an argument out of its range, a module without trainable parameters or none of
            the optimiser's, ``loss`` without ``probe``.

    Examples:
        >>> import torch, particlevi as pvi
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> net = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with pvi.record.Recorder(net, optimizer, every=2) as recorder:
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         net(x).square().mean().backward()
        ...         _ = optimizer.step()
        >>> recorder.draws().particles.shape
        torch.Size([1, 10, 4])
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int | None = None,
        keep: int | None = None,
        loss: Loss | None = None,
        probe: Any = None,
        probe_every: int | None = None,
        budget: float = 0.1,
        max_bytes: int = 10**9,
    ):
        check_fraction("budget", budget)
        for name, value in (("every", every), ("keep", keep), ("probe_every", probe_every)):
            if value is not None:
                check_positive_int(name, value)
        if (loss is None) != (probe is None):
            raise ValueError(
                "loss and probe belong together: loss(probe) is the mean training loss on a batch "
                f"of data, got {'no loss' if loss is None else 'no probe'}."
            )
        members = ("register_step_pre_hook", "register_step_post_hook", "param_groups")
        check_has("optimizer", optimizer, members, "an optimiser as those of torch.optim")
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in moved for p in trainable(module).values()):
            raise ValueError(
                f"The optimiser has none of the trainable parameters of {type(module).__name__}: "
                "give the module that it trains."
            )
        self.module: nn.Module = module
        self.optimizer: torch.optim.Optimizer = optimizer
        self.parameters: dict[str, nn.Parameter] = trainable(module)
        self.loss: Loss | None = loss
        self.probe: Any = probe
        self.probe_every: int | None = probe_every
        self.budget: float = float(budget)
        self.paced: bool = every is None
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(p.shape) for name, p in self.parameters.items()
        }
        self.statistics: dict[str, tuple[nn.Module, str]] = running_statistics(module)
        size = sum(p.numel() for p in self.parameters.values())
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(size, generator=generator)
        some = keep is not None and keep < size
        self.coordinates: Tensor | None = order[:keep].sort().values if some else None
        self.watched: Tensor = order[:_WATCHED].sort().values
        self.iterates: Iterates = Iterates(10 if every is None else every, max_bytes)
        self.series: dict[str, list[float]] = {
            name: []
            for name in ("step", "rate", "weight_norm", "gradient_norm", "update_norm", "seconds")
        }
        self.probes: dict[str, list[float]] = {
            name: [] for name in ("step", "trace", "error", "gradient", "curvature", "edge")
        }
        self.pairs: Iterates = Iterates(self.iterates.every, _PAIR_BYTES)
        self.num_steps: int = 0
        self.spent: float = 0.0
        self.spent_on_probes: float = 0.0
        self.began: float | None = None
        self.before: tuple[Tensor, Tensor] | None = None
        if loss is not None:
            load_probes()
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off; what was recorded stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        start = time.perf_counter()
        self.began = start if self.began is None else self.began
        if self.iterates.wants(self.num_steps + 1):
            with torch.no_grad():
                self.before = self._point(), self._slope()
            self.spent += time.perf_counter() - start

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        start = time.perf_counter()
        self.num_steps += 1
        if self.before is not None:
            with torch.no_grad():
                self._record(*self.before, start)
            self.before = None
        if self.loss is not None and self._probe_is_due(start):
            self.measure()
        self.spent += time.perf_counter() - start

    def _record(self, point: Tensor, slope: Tensor, now: float) -> None:
        assert self.began is not None
        after = self._point()
        if self.coordinates is None:
            kept = torch.cat([after, *self._statistics(after)])
        else:
            kept = after[self.coordinates.to(after.device)]
        watched = self.watched.to(point.device)
        self.iterates.add(self.num_steps, kept.cpu())
        self.pairs.add(self.num_steps, torch.stack([point[watched], slope[watched]]).cpu())
        norms = torch.stack([after.norm(), slope.norm(), (after - point).norm()]).tolist()
        row = (self.num_steps, self._rate(), *norms, now - self.began)
        for name, value in zip(self.series, row, strict=True):
            self.series[name].append(float(value))
        if self.paced and len(self.series["step"]) % _LOOKS == 0:
            spent = self.spent - self.spent_on_probes
            if spent > _SHARE * self.budget * (now - self.began - self.spent):
                self.iterates.coarsen(2 * self.iterates.every)
        if self.pairs.every < self.iterates.every:
            self.pairs.coarsen(self.iterates.every)

    def measure(self) -> tuple[Noise, float]:
        """Gradient noise and largest curvature now, which are also recorded.

        Raises:
            ValueError: a recorder without ``loss`` and ``probe``, or a loss that is not one number.
        """
        if self.loss is None:
            raise ValueError("This recorder has no loss: Recorder(..., loss=..., probe=...).")
        start = time.perf_counter()
        noise = gradient_noise(self.module, self.loss, self.probe)
        curvature = top_curvature(self.module, self.loss, self.probe)
        edge = edge_of_stability(self.optimizer)
        row = (self.num_steps, noise.trace, noise.error, noise.gradient, curvature, edge)
        for name, value in zip(self.probes, row, strict=True):
            self.probes[name].append(float(value))
        self.spent_on_probes += time.perf_counter() - start
        return noise, curvature

    def _probe_is_due(self, now: float) -> bool:
        if self.probe_every is not None:
            return self.num_steps % self.probe_every == 0
        assert self.began is not None
        count, elapsed = len(self.probes["step"]), now - self.began
        typical = elapsed * _FIRST_PROBE / self.num_steps
        next_one = self.spent_on_probes / count if count else typical
        own = elapsed - self.spent
        return self.spent_on_probes + next_one <= _SHARE * self.budget * own

    def _point(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])

    def _statistics(self, like: Tensor) -> list[Tensor]:
        found = (getattr(layer, name) for layer, name in self.statistics.values())
        return [each.detach().reshape(-1).to(like) for each in found]

    def _slope(self) -> Tensor:
        zero = torch.zeros_like
        found = [zero(p) if p.grad is None else p.grad for p in self.parameters.values()]
        dense = [each.to_dense() if each.is_sparse else each for each in found]
        return torch.cat([each.detach().reshape(-1) for each in dense])

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    @property
    def cost(self) -> float:
        """Share of the time since the first step that recording took; NaN before it."""
        if self.began is None:
            return math.nan
        return self.spent / max(time.perf_counter() - self.began, 1e-9)

    def status(self) -> Status:
        """How the training stands; ``print(recorder)`` shows it."""
        last = {name: values[-1] if values else math.nan for name, values in self.series.items()}
        noise, curvature = None, math.nan
        if self.probes["step"]:
            trace, signal = self.probes["trace"][-1], self.probes["gradient"][-1]
            scale = trace / signal if signal > 0 else math.inf
            noise = Noise(trace, self.probes["error"][-1], signal, scale)
            curvature = self.probes["curvature"][-1]
        return Status(
            self.num_steps,
            len(self.iterates),
            self.cost,
            self._rate(),
            last["gradient_norm"],
            noise,
            curvature,
            edge_of_stability(self.optimizer),
        )

    def __str__(self) -> str:
        waits = self.loss is not None and not self.probes["step"]
        why = "; no probe yet, it waits until its cost fits the budget (or measure())"
        return str(self.status()) + why * waits

    def _repr_html_(self) -> str:
        parts = str(self).split("; ")
        return _html.block(
            f"Recorder of {type(self.optimizer).__name__}",
            _html.notes(("", part) for part in parts),
        )

    def __repr__(self) -> str:
        return f"Recorder({type(self.optimizer).__name__}: {self})"

    def temperature(self, num_data: int = 1, *, skip: float = 0.5) -> Temperature:
        """The configurational temperature of the training, ``N mean_i Cov(theta_i, g_i)``.

        With a loss that is a mean over N data, ``U = N f`` is in nats if the loss is a negative
        log-likelihood, and the temperature of its posterior is 1. Plain SGD with batches of b rests
        near ``N eta / (2 b)`` times the mean variance of a gradient, on a quadratic exactly at
        ``N eta E|g|^2 / (2 D)``. Minibatch gradients do not bias it: they are drawn anew at each
        point. Up to 256 coordinates, picked at random, are used.

        Args:
            num_data: N.
            skip: the share of the records, at the beginning, that is left out.

        Raises:
            ValueError: fewer than 8 records are left.
        """
        check_positive_int("num_data", num_data)
        if not 0 <= skip < 1:
            raise ValueError(f"skip must be in [0, 1), got {skip!r}.")
        rows = self.pairs.rows[int(skip * len(self.pairs)) :]
        if len(rows) < 8:
            raise ValueError(f"A temperature takes at least 8 records, {len(rows)} are left.")
        points, slopes = torch.stack(rows, 1).double()
        virial = num_data * ((points - points.mean(0)) * slopes).mean(1)
        error = float(arviz.mcse(virial[None]))
        return Temperature(float(virial.mean()), error, points.shape[1], math.nan)

    def trace(self) -> dict[str, Tensor]:
        """What was recorded of the steps, ``[T]`` each, by name.

        ``step``, ``rate``, ``weight_norm``, ``gradient_norm``, ``update_norm``, ``seconds``; and of
        the probes, ``[K]``: ``probe.step``, ``probe.trace`` (of the noise) with ``probe.error``,
        ``probe.gradient`` (the square norm), ``probe.curvature``, ``probe.edge``.
        """
        found = {name: torch.tensor(values) for name, values in self.series.items()}
        probes = {f"probe.{name}": torch.tensor(each) for name, each in self.probes.items()}
        return {name: value.double() for name, value in {**found, **probes}.items()}

    def draws(self, potential: ModelPotential | None = None, *, num_warmup: int = 0) -> Draws:
        """The points kept as one chain of draws ``[1, T, K]``.

        Args:
            potential: from ``from_module(module, ...)``: for predictions and comparisons.
            num_warmup: leave out what was recorded in the first so many steps.

        Raises:
            ValueError: nothing was recorded, only coordinates were kept and a potential is given,
                or a potential of other tensors.
        """
        check_positive_int("num_warmup", num_warmup, minimum=0)
        rows = self.iterates.stacked()
        if potential is not None:
            rows = self._under(potential, rows)
        elif self.coordinates is None:
            rows = rows[:, : Layout(self.shapes).num_params]
        where = {int(step): k for k, step in enumerate(self.series["step"])}
        picks = [where[step] for step in self.iterates.steps]
        stats = {
            name: torch.tensor(self.series[each], dtype=torch.float64)[picks]
            for name, each in _STATS.items()
        }
        made = Draws.from_tensor(rows, potential, seconds=self.series["seconds"][-1])
        settings = {"every": self.iterates.every, "optimizer": str(self.optimizer)}
        kept = replace(
            made,
            stats=stats,
            shapes=self.shapes,
            coordinates=self.coordinates,
            minibatch=True,
            num_steps=self.num_steps,
            gradients=float(self.num_steps),
            attrs={"sampler": type(self.optimizer).__name__, "sampler_settings": settings},
        )
        return kept[:, torch.tensor(self.iterates.steps) > num_warmup]

    def _under(self, potential: ModelPotential, rows: Tensor) -> Tensor:
        """Rows as points of the potential, ``[T, D]``: the same functions of the inputs."""
        if self.coordinates is not None:
            raise ValueError(
                "Only some coordinates were kept (keep=...), so the model cannot be evaluated: "
                "leave potential out, or record all parameters."
            )
        renamed = _renaming(potential, self.shapes)
        sizes = {
            name: tuple(getattr(layer, which).shape)
            for name, (layer, which) in self.statistics.items()
        }
        named = Layout({**self.shapes, **sizes}).unravel(rows)
        tensors = {renamed(name): each for name, each in named.items()}
        warn_of_others(
            potential, [{name: each[k] for name, each in tensors.items()} for k in (0, -1)]
        )
        return raveled(potential, tensors)


_STATS = {"step": "step", "step_size": "rate", "gradient_norm": "gradient_norm"}


def _renaming(
    potential: ModelPotential, shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[str], str]:
    """From names in the recorded module to those in the potential's.

    Either may be a part of the other, such as the net of a module that computes its loss.
    """
    wanted = {name: tuple(shape) for name, shape in potential.layout.shapes.items()}
    first, own = next(iter(wanted)), next(iter(shapes))
    old = own.removesuffix(first) if own.endswith(first) else ""
    new = first.removesuffix(own) if first.endswith(own) else ""

    def renamed(name: str) -> str:
        return new + name.removeprefix(old)

    if {renamed(name): shape for name, shape in shapes.items()} == wanted:
        return renamed
    missing = sorted(set(wanted) - set(shapes))
    raise ValueError(
        f"The potential has the tensors {list(wanted)}, the recorded module {list(shapes)}"
        f"{f'; {missing} were not trained' if missing else ''}: make the potential by "
        "from_module(module, ...) with a likelihood of a fixed scale."
    )
