"""One run: the loop over steps, and its way into a checkpoint and back."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_nonnegative
from particlevi.data import BatchSource, Data
from particlevi.draws import Draws
from particlevi.errors import DivergenceError
from particlevi.potentials.chunks import chunks
from particlevi.progress import progress_bar
from particlevi.running.compiling import compiled, static_shapes
from particlevi.running.monitor import (
    DivergenceWatch,
    Interrupt,
    runaway_bound,
)
from particlevi.schedules import describe
from particlevi.storage import checkpoint as files
from particlevi.storage.recording import Recorder, Storage, check_memory, describe_keep
from particlevi.typing import Controls, Progress, Sampler, SamplerState, Schedule

__all__ = ["STATE_FILE", "Run", "Settings", "identity"]

STATE_FILE = "state.safetensors"
_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_LONGEST_GAP = 1_000_000


@dataclass(frozen=True)
class Settings:
    """The arguments of a run that a checkpoint writes down."""

    num_particles: int
    num_warmup: int
    num_draws: int
    thin: int
    batch_size: int | None
    batching: str
    shared_batch: bool
    seed: int
    compile: bool
    check_every: int
    keep_warmup: bool
    storage_dtype: str
    checkpoint_every: int | None


class Run:
    """One run: its settings, its state, and where it stands."""

    def __init__(
        self,
        sampler: Sampler,
        data: Data,
        settings: Settings,
        step_size: Schedule,
        keep: Any,
        folder: Path | None,
    ):
        self.sampler = sampler
        self.potential = sampler.potential
        self.noise_generator = torch.Generator(self.potential.device)
        self.batch_generator = torch.Generator(self.potential.device)
        self.settings = settings
        self.folder = folder
        self.identity = {**identity(sampler), "data": data.fingerprint()}
        self.source: BatchSource = data.batches(
            batch_size=settings.batch_size,
            num_particles=settings.num_particles,
            shared=settings.shared_batch,
            batching=settings.batching,  # type: ignore[arg-type]
        )
        self.schedules: dict[str, Schedule] = {"step_size": step_size, **sampler.schedules}
        self.scalars: dict[str, float] = {}
        self.controls: dict[str, Tensor] = {}
        self.recorder = Recorder(self.potential, keep)
        self.keep = describe_keep(keep)
        dtype = getattr(torch, settings.storage_dtype)
        num_warmup_draws = settings.num_warmup // settings.thin if settings.keep_warmup else 0
        count = settings.num_draws + num_warmup_draws
        check_memory(
            {
                "draws": settings.num_particles * count * self.recorder.size * dtype.itemsize,
                f"the {sampler.estimator.name} estimator": sampler.estimator.nbytes(
                    settings.num_particles
                ),
                "the order of the data": self.source.nbytes(),
                "minibatches": self.source.batch_nbytes(settings.num_particles),
            }
        )
        self.kept_steps = _kept_steps(settings, self.schedules)
        self.num_steps = self.kept_steps[-1] + 1
        self.storage = Storage(settings.num_particles, count, self.recorder.size, dtype)
        self.step = 0
        self.seconds = 0.0
        self.saved_draws: list[int] = [0]
        self.interrupted = False
        self.warned = False

    def start(self, initial: Tensor, noise_seed: int, batch_seed: int) -> None:
        """Begin at ``initial``."""
        self.noise_generator.manual_seed(noise_seed)
        self.batch_generator.manual_seed(batch_seed)
        energy = self._probe(initial)
        bad = (~torch.isfinite(energy)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"The potential is not finite at the start for particles {bad[:10]}: choose other "
                "starting points (initial=) inside the support, or rescale the data."
            )
        self.watch = DivergenceWatch(runaway_bound(energy, self.potential.num_params), {})
        self.state: SamplerState = self.sampler.init(initial, self.noise_generator)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._save()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on where the checkpoint stands."""
        device = self.potential.device
        shape = (self.settings.num_particles, self.potential.num_params)
        blank = torch.zeros(shape, device=device, dtype=self.potential.dtype)
        self._probe(blank + tensors["state.position"].to(device))
        template = self.sampler.init(blank, self.noise_generator)
        self.state = files.unflatten(template, tensors, "state")
        self.noise_generator.set_state(tensors["noise_generator"])
        self.batch_generator.set_state(tensors["batch_generator"])
        for first, last in itertools.pairwise(meta["saved_draws"]):
            part, _ = files.read(self._draws_file(first, last))
            self.storage.extend(part)
        self.saved_draws = meta["saved_draws"]
        self.step, self.seconds = meta["step"], meta["seconds"]
        diverged = {int(chain): when for chain, when in meta["diverged"].items()}
        self.watch = DivergenceWatch(tensors["bound"].to(device), diverged)
        prefix = "source."
        self.source.restore(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        torch.set_rng_state(tensors["global_rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda_rng"], device)

    def _probe(self, initial: Tensor) -> Tensor:
        """Potentials ``[P]`` at the start, after checks of shapes and targets."""
        batch = self.source.example()
        if batch is not None:
            self.source.check_targets(self.potential.target_check(initial, batch))
        energies = []
        for part, piece in chunks(initial, batch, self.potential.chunk_size):
            energies.append(self.potential(part, piece))
        energy = torch.cat(energies)
        if energy.shape != (len(initial),):
            raise ValueError(
                f"The potential must give one value per particle, [{len(initial)}], "
                f"got {list(energy.shape)}."
            )
        return energy

    def _controls(self) -> Controls:
        position = self.state.position
        for name, schedule in self.schedules.items():
            value = schedule(self.step)
            if type(value) is not float or self.scalars.get(name) != value:
                check_nonnegative(f"the schedule of {name} at step {self.step}", value)
                self.scalars[name] = value
                self.controls[name] = torch.tensor(
                    value, dtype=position.dtype, device=position.device
                )
        return self.controls

    def loop(self, progress: bool) -> Draws:
        """Run to the end, to Ctrl-C, or until nothing is left to run.

        An error on the way leaves with the draws made before it, as its attribute ``draws``.
        """
        try:
            return self._loop(progress)
        except DivergenceError:
            raise
        except BaseException as error:
            error.draws = self._draws()  # type: ignore[attr-defined]
            error.add_note(
                f"It came at step {self.step + 1}; the {self._draws_kept()} of "
                f"{self.settings.num_draws} draws made before it are in this error's .draws."
            )
            raise

    def _loop(self, progress: bool) -> Draws:
        sampler, settings = self.sampler, self.settings
        source, watch = self.source, self.watch
        move = compiled(sampler, source.example()) if settings.compile else sampler.step
        keep = self.kept_steps
        began, saved_at = time.perf_counter() - self.seconds, time.perf_counter()
        bar = progress_bar(sampler.name, self.step, self.num_steps, progress)
        shapes = static_shapes() if settings.compile else nullcontext()
        with bar, shapes, Interrupt().watch() as interrupt:
            while self.step < self.num_steps:
                batch = source.next(self.batch_generator)
                noise = sampler.draw_noise(self.state, self.noise_generator)
                self.state, info = move(self.state, batch, noise, self._controls())
                self.step += 1
                self.state = sampler.record(
                    self.state, Progress(self.step, settings.num_warmup, self.num_steps)
                )
                weight = self.scalars.get("annealing", 1.0)
                watch.observe(info.potential if weight == 1.0 else weight * info.potential)
                if self.step - 1 == keep[self.storage.count]:
                    scalars = {"step": float(self.step), **self.scalars}
                    found = {**info._asdict(), **sampler.observe(self.state)}
                    self.storage.append(self.recorder(self.state.position), found, scalars)
                last = self.step == self.num_steps or interrupt.requested
                save = self.folder is not None and self._checkpoint_due(last, saved_at)
                if last or save or self.step % settings.check_every == 0:
                    self._check(began, bar, info)
                if save:
                    self.seconds, saved_at = time.perf_counter() - began, time.perf_counter()
                    self._save()
                if last:
                    break
        self.seconds = time.perf_counter() - began
        self.interrupted = self.step < self.num_steps
        if self.interrupted:
            where = f"; resume from {self.folder}" if self.folder is not None else ""
            warnings.warn(
                f"Interrupted after {self.step} of {self.num_steps} steps: returning "
                f"{self._draws_kept()} of {settings.num_draws} draws{where}.",
                stacklevel=4,
            )
        return self._draws()

    def _check(self, began: float, bar: Any, info: Any) -> None:
        new = self.watch.check(self.state.position, self.step)
        lost = self.watch.diverged
        if new and (self.sampler.interacting or len(lost) == self.settings.num_particles):
            self.seconds = time.perf_counter() - began
            raise DivergenceError(self._divergence_message(new), self._draws_before(new))
        if new:
            warnings.warn(self._divergence_message(new), stacklevel=5)
        self._warn(info)
        bar.update(self.step - bar.n)
        alive = [c for c in range(self.settings.num_particles) if c not in lost]
        shown = {"potential": f"{float(info.potential[alive].mean()):.4g}"}
        for name, value in info._asdict().items():
            if name.endswith("temperature"):
                short = name.removesuffix("_temperature")[:4]
                shown[f"T_{short}"] = f"{float(value[alive].mean()):.3g}"
        bar.set_postfix(shown, refresh=False)

    def _warn(self, info: Any) -> None:
        """What the sampler has to say, once."""
        ask = self.sampler.warning
        if ask is None or self.warned or self.step <= self.settings.num_warmup:
            return
        message = ask(info, self.controls)
        if message is not None:
            self.warned = True
            warnings.warn(message, stacklevel=6)

    def _divergence_message(self, new: dict[int, int]) -> str:
        kind = "Particles" if self.sampler.interacting else "Chains"
        listed = ", ".join(f"{chain} (step {step})" for chain, step in list(new.items())[:10])
        return (
            f"{kind} diverged: {listed}{' ...' if len(new) > 10 else ''}. The likely cause is a "
            f"step size beyond stability; it was {self.scalars['step_size']:.3g}: try a tenth of "
            "it, or a start nearer to the mode."
        )

    def _checkpoint_due(self, last: bool, saved_at: float) -> bool:
        every = self.settings.checkpoint_every
        if last:
            return True
        if every is not None:
            return self.step % every == 0
        return time.perf_counter() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS

    def _draws_file(self, first: int, last: int) -> Path:
        assert self.folder is not None
        return self.folder / f"draws-{first:09d}-{last:09d}.safetensors"

    def _save(self) -> None:
        assert self.folder is not None
        first, last = self.saved_draws[-1], self.storage.count
        if last > first:
            files.write(self._draws_file(first, last), self.storage.part(first, last), {})
            self.saved_draws = [*self.saved_draws, last]
        tensors = files.flatten(self.state, "state")
        tensors |= {f"source.{name}": value for name, value in self.source.state().items()}
        tensors |= {
            "noise_generator": self.noise_generator.get_state(),
            "batch_generator": self.batch_generator.get_state(),
            "global_rng": torch.get_rng_state(),
        }
        tensors["bound"] = self.watch.bound
        if self.potential.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.potential.device)
        meta = {
            "identity": self.identity,
            "settings": asdict(self.settings),
            "step_size": describe(self.schedules["step_size"]),
            "step": self.step,
            "seconds": self.seconds,
            "keep": self.keep,
            "saved_draws": self.saved_draws,
            "diverged": self.watch.diverged,
        }
        files.write(self.folder / STATE_FILE, tensors, meta)

    def _num_warmup_draws(self) -> int:
        return len(self.kept_steps) - self.settings.num_draws

    def _draws_kept(self) -> int:
        return max(0, self.storage.count - self._num_warmup_draws())

    def _draws_before(self, new: dict[int, int]) -> Draws:
        """The draws of the particles just lost, from before the first of them was."""
        first, lost = min(new.values()), self.watch.diverged
        whole = sum(step + 1 < first for step in self.kept_steps[: self.storage.count])
        self.storage.count = whole
        self.watch.diverged = {chain: step for chain, step in lost.items() if chain not in new}
        return dataclasses.replace(self._draws(), diverged=lost)

    def _draws(self) -> Draws:
        lost = self.watch.diverged
        alive = [c for c in range(self.settings.num_particles) if c not in lost]
        warm = min(self._num_warmup_draws(), self.storage.count)
        stop = self.storage.count
        values, stats = self.storage.values[:, :stop], self.storage.stats

        def cut(value: Tensor, a: int, b: int) -> Tensor:
            if value.ndim == 1:
                return value[a:b]
            return value[:, a:b] if not lost else value[alive, a:b]

        return Draws(
            particles=cut(values, warm, stop),
            stats={name: cut(value, warm, stop) for name, value in stats.items()},
            warmup=cut(values, 0, warm) if self.settings.keep_warmup else None,
            warmup_stats={name: cut(value, 0, warm) for name, value in stats.items()}
            if self.settings.keep_warmup
            else {},
            chains=alive,
            diverged=dict(lost),
            interrupted=self.interrupted,
            interacting=self.sampler.interacting,
            seconds=self.seconds,
            num_steps=self.step,
            coordinates=None if self.recorder.columns is None else self.recorder.columns.cpu(),
            output_shape=self.recorder.output_shape if self.recorder.inputs is not None else None,
            shapes=dict(self.potential.layout.shapes),
            attrs={
                "sampler": self.sampler.name,
                **self.identity["sampler"],
                **asdict(self.settings),
                "step_size": describe(self.schedules["step_size"]),
                "gradients_per_step": self.sampler.gradients_per_step,
            },
            fingerprint=self.identity["potential"],
            potential=self.potential,
        )


def identity(sampler: Sampler) -> dict[str, Any]:
    """What two runs must share, beside the data, for one to resume the other's checkpoint."""
    return {
        "potential": dict(sampler.potential.fingerprint),
        "sampler": {
            "sampler": sampler.name,
            "sampler_settings": dict(sampler.settings),
            "estimator": sampler.estimator.name,
            "estimator_settings": dict(sampler.estimator.settings),
        },
    }


def _kept_steps(settings: Settings, schedules: dict[str, Schedule]) -> list[int]:
    """The steps (from 0) that end in a draw; a schedule may rule steps out by its ``keep``."""
    gates = [s.keep for s in schedules.values() if hasattr(s, "keep")]
    warm = range(settings.thin - 1, settings.num_warmup, settings.thin)
    kept = list(warm) if settings.keep_warmup else []
    if not gates:
        first = settings.num_warmup + settings.thin - 1
        last = settings.num_warmup + settings.thin * settings.num_draws
        return kept + list(range(first, last, settings.thin))
    every = itertools.islice(
        _allowed(gates, settings.num_warmup), settings.thin - 1, None, settings.thin
    )
    return kept + list(itertools.islice(every, settings.num_draws))


def _allowed(gates: list[Callable[[int], bool]], first: int) -> Iterator[int]:
    """The steps that every schedule keeps."""
    last = first
    for step in itertools.count(first):
        if all(gate(step) for gate in gates):
            last = step
            yield step
        elif step - last > _LONGEST_GAP:
            raise ValueError(
                f"The schedules keep no draw in {_LONGEST_GAP} steps after step {last}: their "
                "cycles never sample at one time. Give them one period."
            )
