"""``sample()``: the only loop. It knows nothing of any one sampler."""

from __future__ import annotations

import dataclasses
import itertools
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi import checkpoint as files
from particlevi._checks import (
    check_finite,
    check_nonnegative,
    check_particles,
    check_positive_int,
    check_seed,
)
from particlevi.batches import BatchSource, as_source, fingerprint
from particlevi.draws import Draws
from particlevi.monitor import (
    DivergenceError,
    DivergenceWatch,
    Interrupt,
    progress_bar,
    runaway_bound,
)
from particlevi.potentials.chunks import chunks
from particlevi.potentials.random import draw_seed
from particlevi.recording import Recorder, Storage, check_memory, describe_keep
from particlevi.schedules import as_schedule, describe, restore
from particlevi.typing import Batch, Controls, Progress, Sampler, SamplerState, Schedule

__all__ = ["resume", "sample"]

_STATE = "state.safetensors"
_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_LONGEST_GAP = 1_000_000
_unique = itertools.count()
_compiled_steps: WeakKeyDictionary[Sampler, dict[str, Callable[..., Any]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Settings:
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


class _Seeds(NamedTuple):
    """Seeds of independent streams, so that runs with one seed see the data in one order."""

    start: int
    batches: int
    noise: int
    everything_else: int

    @classmethod
    def of(cls, seed: int) -> _Seeds:
        generator = torch.Generator().manual_seed(seed)
        return cls(*(draw_seed(generator) for _ in cls._fields))


def sample(
    sampler: Sampler,
    data: Any = None,
    *,
    step_size: float | Schedule,
    batch_size: int | None = None,
    num_particles: int | None = None,
    initial: Tensor | str | None = None,
    num_warmup: int = 0,
    num_draws: int = 1000,
    thin: int = 1,
    seed: int = 0,
    compile: bool = False,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    batching: str = "replacement",
    shared_batch: bool | None = None,
    keep: Any = None,
    keep_warmup: bool = False,
    storage_dtype: torch.dtype | None = None,
    check_every: int = 50,
) -> Draws:
    """Run a sampler and keep its draws.

    After ``num_warmup`` steps come ``num_draws * thin`` more; every ``thin``-th ends in a draw.
    Ctrl-C ends the run and returns what was drawn. Chains that become non-finite or run away are
    left out of the result, with a warning that tells the step at which it happened.

    Args:
        sampler: from ``pvi.sgld(potential)`` and its like.
        data: tensors or arrays with first dimension N, such as ``(x, y)``, from which minibatches
            are drawn here; or an iterable of batches that can be read many times, such as a
            ``DataLoader``, whose batches all particles share. Absent for a density without data.
        step_size: h, a number or a schedule; its meaning is the sampler's.
        batch_size: B; all data at every step if absent.
        num_particles: P, unless ``initial`` is a tensor.
        initial: starting points ``[P, D]``, or the name of a way to draw them: ``"module"``,
            ``"prior"``, ``"current"``, as far as the potential has them.
        num_warmup: steps not kept.
        num_draws: T.
        thin: steps per draw.
        seed: of all randomness of the run. Starting points, minibatches and noise have streams of
            their own, so that different samplers with one seed see the data in one order. Torch's
            global generator is seeded inside and left as it was.
        compile: compile the whole step with ``torch.compile``: the same draws up to rounding. Not
            for Pyro models.
        progress: show a progress bar.
        checkpoint: a folder to save the run in, so that ``resume`` can go on after a crash.
        checkpoint_every: steps between checkpoints; about once a minute if absent.
        batching: ``"replacement"`` (independent indices), ``"subset"`` (a fresh random subset per
            step) or ``"epoch"`` (random order, reshuffled every epoch).
        shared_batch: one minibatch for all particles. By default each chain draws its own, since
            sharing correlates chains and flatters R-hat and pooled ESS; interacting particles
            share.
        keep: what is kept of a draw: all parameters by default, name patterns such as
            ``["2.*"]``, coordinates ``LongTensor [K]``, or ``pvi.outputs_at(inputs)``.
        keep_warmup: keep every ``thin``-th step of the warm-up too.
        storage_dtype: of the kept draws; that of the potential if absent.
        check_every: steps between checks for divergence and updates of the bar.

    Returns:
        The draws.

    Raises:
        ValueError: an argument out of its range, data that do not fit the potential, or a
            potential that is not finite at the start or, if asked to, cannot be compiled.
        MemoryError: the draws and the estimator's state would not fit in memory.
        FileExistsError: the checkpoint folder already holds a run.
        DivergenceError: every chain, or an interacting particle, diverged; its ``draws`` hold what
            was drawn before.

    >>> import particlevi as pvi
    >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2)
    >>> draws = pvi.sample(
    ...     pvi.sghmc(normal), step_size=0.5, num_particles=100, num_warmup=50, num_draws=100,
    ...     progress=False,
    ... )
    >>> draws.particles.shape
    torch.Size([100, 100, 2])
    >>> bool((draws.particles.var() - 1).abs() < 0.1)
    True
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sample() takes a sampler, such as pvi.sghmc(potential), got {type(sampler).__name__}."
        )
    check_positive_int("num_draws", num_draws)
    check_positive_int("num_warmup", num_warmup, minimum=0)
    check_positive_int("thin", thin)
    check_positive_int("check_every", check_every)
    if checkpoint_every is not None:
        check_positive_int("checkpoint_every", checkpoint_every)
    check_seed("seed", seed)
    if storage_dtype is not None:
        _check_storage_dtype(storage_dtype)
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    schedule = as_schedule("step_size", step_size)
    potential = sampler.potential
    if compile and not potential.compilable:
        raise ValueError(
            "compile=True needs a potential that torch.compile can trace, but a "
            f"{potential.fingerprint.get('kind', '?')} model runs Python code of its own at every "
            "step. Leave compile out, or write the model as a module (from_module) or as a "
            "log-likelihood in torch operations (from_log_likelihood)."
        )
    seeds = _Seeds.of(int(seed))
    start = _starting_points(potential, num_particles, initial, seeds.start)
    settings = _Settings(
        num_particles=len(start),
        num_warmup=int(num_warmup),
        num_draws=int(num_draws),
        thin=int(thin),
        batch_size=None if batch_size is None else int(batch_size),
        batching=batching,
        shared_batch=sampler.interacting if shared_batch is None else shared_batch,
        seed=int(seed),
        compile=compile,
        check_every=int(check_every),
        keep_warmup=keep_warmup,
        storage_dtype=str(storage_dtype or potential.dtype).removeprefix("torch."),
        checkpoint_every=checkpoint_every,
    )
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None and (folder / _STATE).exists():
        raise FileExistsError(
            f"{folder} already holds a run: go on with it by pvi.resume({str(folder)!r}, sampler, "
            "data), or choose another folder."
        )
    if folder is not None and folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint must be a folder, got the file {folder}.")
    with torch.no_grad(), _global_seed(seeds.everything_else, potential.device):
        run = _Run(sampler, data, settings, schedule, keep, folder)
        run.start(start, seeds)
        return run.loop(progress)


def resume(
    checkpoint: str | Path,
    sampler: Sampler,
    data: Any = None,
    *,
    step_size: float | Schedule | None = None,
    keep: Any = None,
    progress: bool = True,
) -> Draws:
    """Go on with a run that was saved by ``sample(..., checkpoint=...)``.

    The draws are bit for bit those of a run that was never interrupted. The sampler and the data
    are made again by the caller, and refused if they are not those of the checkpoint.

    Args:
        checkpoint: the folder.
        sampler: made as for the first run.
        data: as in the first run.
        step_size: needed again only if it was a function of the caller's own.
        keep: as in the first run.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: no checkpoint in that folder.
        ValueError: a checkpoint of another potential, sampler or other data; the difference is
            named.
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"resume() takes the sampler of the run, made again, got {type(sampler).__name__}."
        )
    folder = Path(checkpoint)
    tensors, meta = files.read(folder / _STATE)
    found = files.differences(meta["identity"], _identity(sampler, data), "the run's")
    if step_size is not None:
        given = describe(as_schedule("step_size", step_size))
        found += files.differences(meta["step_size"], given, "the run's step_size")
    found += files.differences(meta["keep"], describe_keep(keep), "the run's keep")
    if found:
        raise ValueError(
            f"{folder} is a checkpoint of another run, so it is not resumed:\n  "
            + "\n  ".join(found)
        )
    schedule = restore(meta["step_size"])
    if schedule is None and step_size is None:
        raise ValueError(
            "The step size of the run was a function of your own: pass it again as step_size."
        )
    settings = _Settings(**meta["settings"])
    chosen = as_schedule("step_size", step_size) if step_size is not None else schedule
    assert chosen is not None
    with torch.no_grad(), _global_seed(0, sampler.potential.device):
        run = _Run(sampler, data, settings, chosen, keep, folder)
        run.restore(tensors, meta)
        return run.loop(progress)


class _Run:
    """One run: its settings, its state, and where it stands."""

    def __init__(
        self,
        sampler: Sampler,
        data: Any,
        settings: _Settings,
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
        self.identity = _identity(sampler, data)
        self.source: BatchSource = as_source(
            data,
            self.potential,
            batch_size=settings.batch_size,
            num_particles=settings.num_particles,
            shared=settings.shared_batch,
            method=settings.batching,
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
            }
        )
        self.kept_steps = _kept_steps(settings, self.schedules)
        self.num_steps = self.kept_steps[-1] + 1
        self.storage = Storage(settings.num_particles, count, self.recorder.size, dtype)
        self.step = 0
        self.seconds = 0.0
        self.saved_draws: list[int] = [0]
        self.interrupted = False

    def start(self, initial: Tensor, seeds: _Seeds) -> None:
        """Begin at ``initial``."""
        self.noise_generator.manual_seed(seeds.noise)
        self.batch_generator.manual_seed(seeds.batches)
        energy = self._probe(initial)
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
        """Potentials ``[P]`` at the start, after checks of shapes, targets and finiteness."""
        batch = self.source.example()
        if batch is not None:
            self.potential.check_targets(initial, batch, self.source.targets())
        energies = []
        for part, piece in chunks(initial, batch, self.potential.chunk_size):
            energies.append(self.potential(part, piece))
        energy = torch.cat(energies)
        if energy.shape != (len(initial),):
            raise ValueError(
                f"The potential must give one value per particle, [{len(initial)}], "
                f"got {list(energy.shape)}."
            )
        bad = (~torch.isfinite(energy)).nonzero().flatten().tolist()
        if bad and self.step == 0:
            raise ValueError(
                f"The potential is not finite at the start for particles {bad[:10]}: choose other "
                "starting points (initial=) inside the support, or rescale the data."
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
        """Run to the end, to Ctrl-C, or until nothing is left to run."""
        sampler, settings = self.sampler, self.settings
        source, watch = self.source, self.watch
        move = _compiled(sampler, source.example()) if settings.compile else sampler.step
        keep = self.kept_steps
        began, saved_at = time.perf_counter() - self.seconds, time.perf_counter()
        bar = progress_bar(sampler.name, self.step, self.num_steps, progress)
        with bar, Interrupt().watch() as interrupt:
            while self.step < self.num_steps:
                batch = source.next(self.batch_generator)
                noise = sampler.draw_noise(self.state, self.noise_generator)
                self.state, info = move(self.state, batch, noise, self._controls())
                self.step += 1
                self.state = sampler.record(
                    self.state, Progress(self.step, settings.num_warmup, self.num_steps)
                )
                watch.observe(info.potential)
                if self.step - 1 == keep[self.storage.count]:
                    scalars = {"step": float(self.step), **self.scalars}
                    self.storage.append(self.recorder(self.state.position), info._asdict(), scalars)
                last = self.step == self.num_steps or interrupt.requested
                if last or self.step % settings.check_every == 0:
                    self._check(began, bar, info)
                if self.folder is not None and self._checkpoint_due(last, saved_at):
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
                stacklevel=3,
            )
        return self._draws()

    def _check(self, began: float, bar: Any, info: Any) -> None:
        new = self.watch.check(self.state.position, self.step)
        lost = self.watch.diverged
        if new and (self.sampler.interacting or len(lost) == self.settings.num_particles):
            self.seconds = time.perf_counter() - began
            raise DivergenceError(self._divergence_message(new), self._draws_before(new))
        if new:
            warnings.warn(self._divergence_message(new), stacklevel=4)
        bar.update(self.step - bar.n)
        alive = [c for c in range(self.settings.num_particles) if c not in lost]
        shown = {"potential": f"{float(info.potential[alive].mean()):.4g}"}
        for name, value in info._asdict().items():
            if name.endswith("temperature"):
                shown["T_" + name.removesuffix("_temperature")[:6]] = (
                    f"{float(value[alive].mean()):.3g}"
                )
        bar.set_postfix(shown, refresh=False)

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
        files.write(self.folder / _STATE, tensors, meta)

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
            },
            fingerprint=self.identity["potential"],
            potential=self.potential,
        )


def _identity(sampler: Sampler, data: Any) -> dict[str, Any]:
    """What two runs must share for one to go on with the other's checkpoint."""
    return {
        "potential": dict(sampler.potential.fingerprint),
        "sampler": {
            "sampler": sampler.name,
            "sampler_settings": dict(sampler.settings),
            "estimator": sampler.estimator.name,
            "estimator_settings": dict(sampler.estimator.settings),
        },
        "data": fingerprint(data),
    }


def _starting_points(
    potential: Any, num_particles: int | None, initial: Tensor | str | None, seed: int
) -> Tensor:
    if isinstance(initial, Tensor):
        check_particles(initial, potential.num_params, "initial")
        check_finite("initial", initial, "Choose finite starting points.")
        if num_particles is not None and num_particles != len(initial):
            raise ValueError(
                f"initial holds {len(initial)} particles but num_particles is {num_particles}: "
                "leave num_particles out."
            )
        return initial.detach().to(potential.device, potential.dtype)
    if initial is not None and not isinstance(initial, str):
        raise TypeError(
            "initial must be a tensor [P, D] or the name of a way to draw starting points, "
            f"got {type(initial).__name__}."
        )
    if num_particles is None:
        raise ValueError("Give num_particles, or starting points initial [P, D].")
    check_positive_int("num_particles", num_particles)
    generator = torch.Generator().manual_seed(seed)
    start: Tensor = potential.init(int(num_particles), generator, initial or "default")
    return start


def _check_storage_dtype(dtype: Any) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"storage_dtype must be a floating-point torch.dtype such as torch.bfloat16, "
            f"got {dtype!r}."
        )


def _kept_steps(settings: _Settings, schedules: dict[str, Schedule]) -> list[int]:
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


def _compiled(sampler: Sampler, example: Batch | None) -> Callable[..., Any]:
    """The sampler's step compiled whole, once per sampler and kind of batch.

    A graph break is an error. The code object is made anew, because torch.compile counts
    compilations per code object and gives up after a few, and all samplers share theirs. Within
    one compilation only the tensors' shapes can change, so only they are guarded.
    """
    kind = f"{pytree.tree_structure(example)} {example is not None and example.per_particle}"
    compilations = _compiled_steps.setdefault(sampler, {})
    if kind not in compilations:
        step = sampler.step
        assert isinstance(step, types.FunctionType)
        code = step.__code__.replace(co_name=f"step_{next(_unique)}")
        fresh = types.FunctionType(
            code, step.__globals__, step.__name__, step.__defaults__, step.__closure__
        )
        options: dict[str, Any] = {"guard_filter_fn": _shapes_only, "size_asserts": False}
        compilations[kind] = torch.compile(fresh, fullgraph=True, dynamic=False, options=options)
    return compilations[kind]


def _shapes_only(guards: Iterable[Any]) -> list[bool]:
    return [guard.guard_type == "TENSOR_MATCH" for guard in guards]


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
