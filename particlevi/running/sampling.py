"""``sample()`` and ``resume()``. They know nothing of any one sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from particlevi._checks import as_path, check_choice, check_has, check_positive_int, check_seed
from particlevi.data import Batching, Minibatches, as_data, as_particles
from particlevi.data.minibatches import as_minibatches
from particlevi.draws import Draws
from particlevi.potentials.arithmetic import pinned
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.random import global_seed
from particlevi.potentials.starts import starting_points
from particlevi.running.converged import converged, probe_inputs
from particlevi.running.loop import Loop
from particlevi.running.monitor import Every, Monitor, Rule, as_monitor
from particlevi.running.plan import Plan
from particlevi.running.saving import STATE_FILE, Saved
from particlevi.running.settings import Settings, identity
from particlevi.schedules import as_schedule, describe, restore
from particlevi.storage import checkpoint as files
from particlevi.storage.lock import locked
from particlevi.storage.recording import describe_keep
from particlevi.storage.sealed import remove_left_over
from particlevi.storage.store import InMemory, Storage
from particlevi.tuning.automatic import Setup, prepare
from particlevi.tuning.stability import check_before_run
from particlevi.typing import Sampler, Schedule, Tuner

__all__ = ["Initial", "Watcher", "resume", "sample"]

Start: TypeAlias = Literal[
    "default", "fresh", "current", "jittered", "prior", "uniform", "normal", "init"
]
"""Ways to choose starting points, as far as the potential has them."""

Initial: TypeAlias = (
    Tensor | Start | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | Draws | None
)
"""What tells where particles start."""

Watcher: TypeAlias = Monitor | Rule | Every | Sequence[Rule | Every]
"""A monitor, or the rules of one."""


def sample(
    sampler: Sampler | ModelPotential,
    data: Any = None,
    *,
    step_size: float | Schedule | None = None,
    batch_size: int | None = None,
    num_particles: int | None = None,
    initial: Initial = None,
    num_warmup: int | None = None,
    num_draws: int | None = None,
    thin: int | None = None,
    seed: int = 0,
    compile: bool = False,
    progress: bool = True,
    checkpoint: str | Path | files.Checkpoint | None = None,
    batching: Batching | Minibatches = "replacement",
    storage: Storage | None = None,
    monitor: Watcher | None = None,
    tuner: Tuner | None = None,
) -> Draws:
    """Run a sampler and keep its draws; or a potential, and have all the rest chosen.

    After ``num_warmup`` steps come ``num_draws * thin`` more; every ``thin``-th ends in a draw.
    Ctrl-C ends the run and returns what was drawn; ``draws.attrs["ended_by"]`` tells what did.
    Chains that become non-finite or run away are left out of the result, with a warning that tells
    the step at which it happened. Before a run of a thousand steps or more, a step size beyond the
    stable range of the sampler at the starting points is warned of
    (``pvi.tuning.check_stability``).

    Args:
        sampler: from ``pvi.sgld(potential)`` and its like; or a potential, and then sampler, start,
            step size, warm-up and number of draws are chosen (``docs/tuning.md``), all data are
            taken at every step, and the run ends when ESS is 400 and R-hat 1.01 at worst.
        data: tensors or arrays with first dimension N, such as ``(x, y)``, from which minibatches
            are drawn here; or an iterable of batches that can be read many times, such as a
            ``DataLoader``, whose batches all particles share. Absent for a density without data.
        step_size: h, a number or a schedule; its meaning is the sampler's. Absent, it is tuned
            during the warm-up, from starting points that are looked for.
        batch_size: B; all data at every step if absent.
        num_particles: P, unless ``initial`` tells it.
        initial: where particles start. By default those of a module start from its present weights
            if it was trained, loaded or set by hand (the first exactly there, the others with 1 %
            of noise), and each from a fresh initialisation otherwise; those of a Pyro model from
            the prior. Or a name, ``"fresh"``, ``"current"``, ``"jittered"``, ``"prior"`` ..., as
            far as the potential has it (``potential.starts.methods``); a tensor ``[P, D]``; a
            ``state_dict`` (or values of Pyro's sites), or a list of them, one per particle; or
            ``Draws``, whose chains are gone on with from their last draws.
        num_warmup: steps not kept; none unless step sizes are tuned.
        num_draws: T; 1000 unless step sizes are tuned.
        thin: steps per draw, 1 unless step sizes are tuned; rounded up to a multiple of the steps
            after which the method has a draw at all.
        seed: of all randomness of the run. Starting points, minibatches and noise have streams of
            their own, one per particle: different samplers with one seed see the data in one
            order, and other particles do not change what one of them does. Torch's global
            generator is seeded inside and left as it was.
        compile: compile the whole step with ``torch.compile``: the same draws up to rounding. Not
            for Pyro models.
        progress: show a progress bar.
        checkpoint: a folder to save the run in, so that ``resume`` can go on after a crash; how
            often is told by ``pvi.storage.Checkpoint(folder, every=...)``.
        batching: ``"replacement"`` (independent indices), ``"subset"`` (a fresh random subset per
            step) or ``"epoch"`` (random order, reshuffled every epoch); whether particles share
            their minibatches is told by ``pvi.data.Minibatches(law, shared=...)``.
        storage: what is kept of a draw and where, ``pvi.storage.InMemory(keep=...)``; all
            parameters in memory if absent.
        monitor: functions that look at the run now and then and may end it, such as
            ``pvi.running.max_seconds(60)`` and ``pvi.running.target_ess(400)``, or a
            ``pvi.running.Monitor``.
        tuner: chooses the step size, and other controls, during the warm-up.

    Returns:
        The draws.

    Raises:
        ValueError: an argument out of its range, data that do not fit the potential, batches or an
            estimator under which the method does not sample what it says, or a potential that is
            not finite at the start or, if asked to, cannot be compiled.
        MemoryError: the draws and the estimator's state would not fit in memory.
        FileExistsError: the checkpoint folder already holds a run.
        RuntimeError: another process runs in the checkpoint folder.
        DivergenceError: every chain, or an interacting particle, diverged. This and any other
            error on the way has an attribute ``draws`` that holds what was drawn before.

    Examples:
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
    if not isinstance(sampler, (Sampler, ModelPotential)):
        raise TypeError(
            "sample() takes a sampler, such as pvi.sghmc(potential), or a potential, got "
            f"{type(sampler).__name__}."
        )
    check_seed("seed", seed)
    if isinstance(sampler, ModelPotential) or (step_size is None and tuner is None):
        setup = _prepared(
            sampler, data, step_size, tuner, num_particles, initial, batch_size, int(seed)
        )
        if monitor is None and num_draws is None and isinstance(sampler, ModelPotential):
            monitor = converged(probe=probe_inputs(sampler, data))
        sampler, tuner, initial, num_particles = setup.sampler, setup.tuner, setup.initial, None
        num_warmup = setup.num_warmup if num_warmup is None else num_warmup
        num_draws = setup.num_draws if num_draws is None else num_draws
        thin = setup.thin if thin is None else thin
    num_warmup = 0 if num_warmup is None else num_warmup
    num_draws, thin = 1000 if num_draws is None else num_draws, 1 if thin is None else thin
    check_positive_int("num_draws", num_draws)
    check_positive_int("num_warmup", num_warmup, minimum=0)
    check_positive_int("thin", thin)
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    for name, flag in (("compile", compile), ("progress", progress)):
        check_choice(name, flag, [True, False])
    schedule = None if step_size is None else as_schedule("step_size", step_size)
    tuner = _tuner(sampler, schedule, tuner, int(num_warmup))
    watcher, storage, batches = as_monitor(monitor), _storage(storage), as_minibatches(batching)
    if compile:
        _check_compilable(sampler)
    start = _start(sampler.potential, num_particles, initial, int(seed))
    saving = _saving(checkpoint)
    settings = Settings(
        num_particles=len(start),
        num_warmup=int(num_warmup),
        num_draws=int(num_draws),
        thin=int(thin),
        batch_size=None if batch_size is None else int(batch_size),
        batching=batches.batching,
        shared_batch=sampler.interacting if batches.shared is None else batches.shared,
        seed=int(seed),
        compile=compile,
        keep_warmup=storage.warmup,
        storage_dtype=str(storage.dtype or sampler.potential.dtype).removeprefix("torch."),
        checkpoint_every=None if saving is None else saving.every,
    )
    folder = None if saving is None else Path(saving.folder)
    if folder is not None:
        _check_folder(folder)
    own = nullcontext() if folder is None else locked(folder)
    with own, torch.no_grad(), global_seed(int(seed)), pinned(sampler.potential.device):
        if folder is not None:
            _check_folder(folder)
            remove_left_over(folder)
        checked = as_data(data, sampler.potential)
        if batches.shared is False and not checked.own_batches:
            raise ValueError(
                "Batches of a DataLoader are shared by all particles: leave shared out of "
                "Minibatches, or pass tensors, from which each chain draws its own."
            )
        plan = Plan.of(sampler, checked, settings, schedule, storage, tuner, folder)
        loop = Loop.start(plan, start)
        if schedule is not None:
            check_before_run(sampler, start, checked, plan.source, schedule, plan.num_steps)
        return loop.run(watcher, progress)


def resume(
    checkpoint: str | Path,
    sampler: Sampler,
    data: Any = None,
    *,
    step_size: float | Schedule | None = None,
    storage: Storage | None = None,
    monitor: Watcher | None = None,
    tuner: Tuner | None = None,
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
        storage: as in the first run.
        monitor: looks at what is left of the run; it need not be that of the first run.
        tuner: as in the first run.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: no checkpoint in that folder.
        ValueError: a checkpoint of another potential, sampler, tuner or other data, or with other
            functions in them, as far as what they compute tells; the difference is named. A file
            that is damaged or of another run.
        RuntimeError: another process runs in that folder.
    """
    check_choice("progress", progress, [True, False])
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"resume() takes the sampler of the run, made again, got {type(sampler).__name__}."
        )
    folder, watcher = as_path("checkpoint", checkpoint), as_monitor(monitor)
    storage = _storage(storage)
    if not (folder / STATE_FILE).is_file():
        raise FileNotFoundError(f"There is no file {folder / STATE_FILE}.")
    with locked(folder):
        remove_left_over(folder)
        return _resumed(folder, sampler, data, step_size, storage, watcher, tuner, progress)


def _resumed(
    folder: Path,
    sampler: Sampler,
    data: Any,
    step_size: float | Schedule | None,
    storage: Storage,
    watcher: Monitor,
    tuner: Tuner | None,
    progress: bool,
) -> Draws:
    """Go on with the run in a folder that nobody else uses."""
    saved = Saved.read(folder)
    settings = Settings(**saved.meta["settings"])
    schedule = _schedule_of(saved.meta["step_size"], step_size)
    tuner = _tuner(sampler, schedule, tuner, settings.num_warmup)
    found = files.differences(saved.meta["sampler"], identity(sampler, tuner), "the run's")
    if step_size is not None:
        given = describe(as_schedule("step_size", step_size))
        found += files.differences(saved.meta["step_size"], given, "the run's step_size")
    found += files.differences(saved.meta["keep"], describe_keep(storage.keep), "the run's keep")
    if found:
        raise ValueError(
            f"{folder} is a checkpoint of another run, so it is not resumed:\n  "
            + "\n  ".join(found)
        )
    checked = as_data(data, sampler.potential)
    others = files.differences(saved.meta["data"], checked.fingerprint(), "the run's data")
    if others:
        raise ValueError(
            f"{folder} is the checkpoint of a run on other data, so it is not resumed:\n  "
            + "\n  ".join(others)
        )
    with torch.no_grad(), global_seed(0), pinned(sampler.potential.device):
        plan = Plan.of(sampler, checked, settings, schedule, storage, tuner, folder)
        return Loop.restore(plan, saved).run(watcher, progress)


def _prepared(
    what: Sampler | ModelPotential,
    data: Any,
    step_size: float | Schedule | None,
    tuner: Tuner | None,
    num_particles: int | None,
    initial: Initial,
    batch_size: int | None,
    seed: int,
) -> Setup:
    """What nobody chose, chosen."""
    if isinstance(what, ModelPotential) and not (step_size is None and tuner is None):
        raise ValueError(
            "With a potential in place of a sampler everything is chosen: leave step_size and "
            "tuner out, or give a sampler, such as pvi.sghmc(potential)."
        )
    potential = what if isinstance(what, ModelPotential) else what.potential
    points = _start(potential, num_particles, initial, seed)
    generator = torch.Generator(points.device).manual_seed(int(seed))
    keep = not (initial is None or isinstance(initial, str))
    with torch.no_grad(), global_seed(seed), pinned(points.device):
        return prepare(what, data, points, generator, batch_size, keep_start=keep)


def _start(
    potential: ModelPotential, num_particles: int | None, initial: Initial, seed: int
) -> Tensor:
    """Starting points ``[P, D]``; a tensor is first checked and placed as particles are."""
    if isinstance(initial, Tensor):
        initial = as_particles(initial, potential, potential.num_params, "initial")
    return starting_points(potential, num_particles, initial, seed)


def _schedule_of(saved: Any, given: float | Schedule | None) -> Schedule | None:
    """The step size of a run that is resumed; None where the tuner chose it."""
    if given is not None:
        return as_schedule("step_size", given)
    if saved is None:
        return None
    schedule = restore(saved)
    if schedule is None:
        raise ValueError(
            "The step size of the run was a function of your own: pass it again as step_size."
        )
    return schedule


def _storage(storage: Storage | None) -> Storage:
    """What keeps the draws; memory if absent."""
    if storage is None:
        return InMemory()
    check_has(
        "storage", storage, ["keep", "nbytes", "open"], "a storage, as pvi.storage.InMemory()"
    )
    return storage


def _tuner(
    sampler: Sampler, step_size: Schedule | None, tuner: Tuner | None, num_warmup: int
) -> Tuner | None:
    """The tuner of a run, or its absence, checked against the other arguments."""
    if tuner is None and step_size is None:
        raise ValueError(
            "The run has no step size: give step_size (pvi.suggest_step_size proposes one), or a "
            "tuner, which chooses it during the warm-up."
        )
    if tuner is not None:
        check_has("tuner", tuner, ["name", "settings", "init"], "a tuner, as pvi.tuning.windows()")
    if tuner is not None and num_warmup == 0:
        raise ValueError(
            f"The tuner {tuner.name} works during the warm-up, but num_warmup is 0: give it steps."
        )
    return tuner


def _saving(checkpoint: str | Path | files.Checkpoint | None) -> files.Checkpoint | None:
    if checkpoint is None or isinstance(checkpoint, files.Checkpoint):
        return checkpoint
    return files.Checkpoint(checkpoint)


def _check_folder(folder: Path) -> None:
    """A run can begin there."""
    if (folder / STATE_FILE).exists():
        raise FileExistsError(
            f"{folder} already holds a run: go on with it by pvi.resume({str(folder)!r}, sampler, "
            "data), or choose another folder."
        )
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint must be a folder, got the file {folder}.")


def _check_compilable(sampler: Sampler) -> None:
    potential = sampler.potential
    if not potential.compilable:
        raise ValueError(
            "compile=True needs a potential that torch.compile can trace, but a "
            f"{potential.fingerprint.get('kind', '?')} model runs Python code of its own at every "
            "step. Leave compile out, or write the model as a module (from_module) or as a "
            "log-likelihood in torch operations (from_log_likelihood)."
        )
