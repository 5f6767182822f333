"""``sample()`` and ``resume()``. They know nothing of any one sampler."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from particlevi._checks import as_path, check_choice, check_has, check_positive_int, check_seed
from particlevi.data import Batching, Data, DataLike, Minibatches, as_data, as_particles
from particlevi.data.minibatches import as_minibatches
from particlevi.distributed import Processes, are_several
from particlevi.draws import Draws
from particlevi.potentials.arithmetic import pinned
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential, is_potential
from particlevi.potentials.random import global_seed
from particlevi.potentials.starts import starting_points
from particlevi.running.compiling import check_compiler
from particlevi.running.ends import Ends, Watcher
from particlevi.running.folder import new_run, run_that_is_there
from particlevi.running.loop import Loop
from particlevi.running.monitor import Monitor
from particlevi.running.plan import Plan
from particlevi.running.ranks import world_of
from particlevi.running.saving import STATE_FILE, Saved
from particlevi.running.settings import Settings, identity
from particlevi.running.world import RunWorld
from particlevi.schedules import as_schedule, describe, restore
from particlevi.storage import checkpoint as files
from particlevi.storage.ondisk import as_storage
from particlevi.storage.recording import describe_keep
from particlevi.storage.store import Storage
from particlevi.tuning.automatic import Setup, affordable, most_draws, prepare
from particlevi.tuning.chosen import because
from particlevi.tuning.memory import recall
from particlevi.tuning.stability import check_before_run
from particlevi.typing import Potential, Sampler, Schedule, Tuner

__all__ = ["Initial", "Watcher", "resume", "sample"]

_CHAINS, _WARMUP_OF_A_TUNER = 8, 500
_SHORTENED = (
    "The warm-up takes {} steps in place of {}, as many as fit into half of what the start left of "
    "max_seconds."
)
_DRAWS = 1000

Start: TypeAlias = Literal[
    "default", "fresh", "current", "jittered", "prior", "uniform", "normal", "init"
]
"""Ways to choose starting points, as far as the potential has them."""

Initial: TypeAlias = (
    Tensor | Start | Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | Draws | None
)
"""What tells where particles start."""


def sample(
    sampler: Sampler | Potential,
    data: DataLike = None,
    *,
    step_size: float | Schedule | None = None,
    batch_size: int | None = None,
    num_particles: int | None = None,
    initial: Initial = None,
    num_warmup: int | None = None,
    num_draws: int | None = None,
    target_ess: float | None = None,
    target_rhat: float | None = None,
    max_seconds: float | None = None,
    thin: int | None = None,
    seed: int = 0,
    compile: bool = False,
    progress: bool = True,
    checkpoint: str | Path | files.Checkpoint | None = None,
    batching: Batching | Minibatches = "replacement",
    store: Storage | str | Path | None = None,
    monitor: Watcher | None = None,
    tuner: Tuner | None = None,
    processes: Processes = "all",
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
            read into memory and taken at every step, and the run ends when ESS is 400 and R-hat
            1.01 at worst.
        data: tensors or arrays with first dimension N, such as ``(x, y)``, from which minibatches
            are drawn here; or an iterable of batches that can be read many times, such as a
            ``DataLoader``, whose batches all particles share. Absent for a density without data.
        step_size: h, a number or a schedule; its meaning is the sampler's. Absent, it is tuned
            during the warm-up, from starting points that are looked for.
        batch_size: B; all data at every step if absent.
        num_particles: P, unless ``initial`` tells it; of a potential 8 if neither is given.
        initial: where particles start. By default those of a module start from its present weights
            if it was trained, loaded or set by hand (the first exactly there, the others with 1 %
            of noise), and each from a fresh initialisation otherwise; those of a Pyro model from
            the prior. Or a name, ``"fresh"``, ``"current"``, ``"jittered"``, ``"prior"`` ..., as
            far as the potential has it (``potential.starts.methods``); a tensor ``[P, D]``; a
            ``state_dict`` (or values of Pyro's sites), or a list of them, one per particle; or
            ``Draws``, whose chains are gone on with from their last draws.
        num_warmup: steps not kept; none unless step sizes are tuned, 500 for a tuner of yours. In
            one process, and not compiled, they are chosen to take half of ``max_seconds`` at most.
        num_draws: T; if absent as many as chosen where step sizes are tuned or there is a target,
            4000 at most, and 1000 else.
        target_ess: the run ends when the smallest effective sample size, of bulk and tail, is this,
            and the largest R-hat that below: of the outputs at twenty of the data for a model with
            outputs, else of the parameters (``pvi.running.converged``). 400 if only the other is
            given. A run that ends before warns.
        target_rhat: as above, 1.01 if only the other is given.
        max_seconds: the run ends when it has taken so long, the search for a start and the warm-up
            included.
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
        store: what is kept of a draw and where: a path for all parameters on disk, such as
            ``"draws.zarr"``, ``pvi.storage.OnDisk(path, keep=...)`` or
            ``pvi.storage.InMemory(keep=...)``; all parameters in memory if absent.
        monitor: functions that look at the run now and then and may end it, or a
            ``pvi.running.Monitor``. A run that ends before it reached a target among them warns.
        tuner: chooses the step size, and other controls, during the warm-up.
        processes: over which the particles are spread: ``"all"`` those that ``torchrun`` started
            the program with, ``"one"``, a process group of ``torch.distributed``, or a
            ``DeviceMesh`` with axes ``"particles"`` and ``"data"``. The draws do not depend on
            their number, up to rounding.

    Returns:
        The draws; over several processes, the first has those of all particles, and every other
        its own.

    Raises:
        ValueError: an argument out of its range, targets twice or for particles that interact,
            data that do not fit the potential, batches or an estimator under which the method does
            not sample what it says, or a potential that is not finite at the start or, if asked
            to, cannot be compiled.
        RuntimeError: ``compile=True`` with a torch before 2.12.
        MemoryError: the draws and the estimator's state would not fit in memory.
        FileExistsError: the checkpoint folder already holds a run, or the path of the store is
            there.
        OSError: nothing can be written to the store; a full disk ends the run, and what was
            written before stays.
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
    began = time.perf_counter()
    check_seed("seed", seed)
    ends = Ends(target_ess, target_rhat, max_seconds)
    until_converged = num_draws is None and not isinstance(_sampled(sampler), Sampler)
    budget: float | None = None
    watcher = ends.added_to(monitor, until_converged)
    what, storage = _sampled(sampler), as_storage(store)
    if not are_several(processes):  # Several find out together, when the store is opened.
        storage.check()
    if isinstance(what, ModelPotential):
        data = _held(what, data)
    if isinstance(what, ModelPotential) or (step_size is None and tuner is None):
        fewest = 2 if until_converged else 1
        setup = _prepared(
            what, data, step_size, tuner, num_particles, initial, batch_size, int(seed), fewest
        )
        tuner = dataclasses.replace(setup.tuner, until_converged=until_converged)
        # Nothing tells beforehand what compiling takes, nor how fast compiled steps are.
        budget = None if num_warmup is not None or compile else ends.seconds
        what, initial, num_particles = setup.sampler, setup.initial, None
        num_warmup = setup.num_warmup if num_warmup is None else num_warmup
        num_draws = setup.num_draws if num_draws is None else num_draws
        thin = setup.thin if thin is None else thin
        batch_size = setup.batch_size
    if num_warmup is None:
        num_warmup = 0 if tuner is None else _WARMUP_OF_A_TUNER
    thin = 1 if thin is None else thin
    if num_draws is not None:
        check_positive_int("num_draws", num_draws)
    check_positive_int("num_warmup", num_warmup, minimum=0)
    check_positive_int("thin", thin)
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
    for name, flag in (("compile", compile), ("progress", progress)):
        check_choice(name, flag, [True, False])
    schedule = None if step_size is None else as_schedule("step_size", step_size)
    tuner = _tuner(what, schedule, tuner, int(num_warmup))
    ends.check(what.interacting)
    batches = as_minibatches(batching)
    if compile:
        _check_compilable(what)
    start = _start(what.potential, num_particles, initial, int(seed))
    if num_draws is None:
        num_draws = most_draws(start) if ends.has_target else _DRAWS
    world = world_of(processes, what, len(start))
    _check_apart(world, compile)
    start = start[world.mine.start : world.mine.stop]
    if budget is not None and world.alone:  # Clocks of several processes do not agree.
        with torch.no_grad(), global_seed(int(seed)), pinned(what.potential.device):
            left = budget - (time.perf_counter() - began)
            most = affordable(what, data, start, batch_size, left)
        if most < num_warmup:
            assert isinstance(tuner, because)
            num_warmup, tuner = most, tuner.and_because(_SHORTENED.format(most, num_warmup))
    saving = _saving(checkpoint)
    settings = Settings(
        num_particles=len(start),
        num_warmup=int(num_warmup),
        num_draws=int(num_draws),
        thin=int(thin),
        batch_size=None if batch_size is None else int(batch_size),
        batching=batches.batching,
        shared_batch=what.interacting if batches.shared is None else batches.shared,
        seed=int(seed),
        compile=compile,
        keep_warmup=storage.warmup,
        storage_dtype=str(storage.dtype or what.potential.dtype).removeprefix("torch."),
        checkpoint_every=None if saving is None else saving.every,
    )
    folder = None if saving is None else Path(saving.folder)
    place = global_seed(int(seed)), pinned(what.potential.device)
    with world.guard(), new_run(folder, world), torch.no_grad(), place[0], place[1]:
        checked = as_data(data, what.potential)
        if batches.shared is False and not checked.own_batches:
            raise ValueError(
                "Batches of a DataLoader are shared by all particles: leave shared out of "
                "Minibatches, or pass tensors, from which each chain draws its own."
            )
        plan = Plan.of(what, checked, settings, schedule, storage, tuner, folder, world)
        if not world.alone:
            world.check_same(plan.summary)
        loop = Loop.start(plan, start, began)
        if schedule is not None:
            check_before_run(what, start, checked, plan.source, schedule, plan.num_steps)
        return loop.run(watcher, progress)


def resume(
    checkpoint: str | Path,
    sampler: Sampler | Potential,
    data: DataLike = None,
    *,
    step_size: float | Schedule | None = None,
    num_draws: int | None = None,
    target_ess: float | None = None,
    target_rhat: float | None = None,
    max_seconds: float | None = None,
    store: Storage | str | Path | None = None,
    monitor: Watcher | None = None,
    tuner: Tuner | None = None,
    processes: Processes = "all",
    progress: bool = True,
) -> Draws:
    """Go on with a run that was saved by ``sample(..., checkpoint=...)``.

    The draws are bit for bit those of a run that was never interrupted. The sampler and the data
    are made again by the caller, and refused if they are not those of the checkpoint. What was
    chosen by an automatic run is in its checkpoint: give its potential, and nothing else.

    Args:
        checkpoint: the folder.
        sampler: made as for the first run; the potential, if that chose its sampler.
        data: as in the first run.
        step_size: needed again only if it was a function of the caller's own.
        num_draws: T of the whole, where a run is to be made longer than was first asked for.
        target_ess: as for ``sample``, of the whole run; it need not be that of the first part.
        target_rhat: as above.
        max_seconds: as above.
        store: as in the first run; needed again only if it is no path.
        monitor: looks at what is left of the run; it need not be that of the first run.
        tuner: as in the first run.
        processes: as for ``sample``; there may be more or fewer than in the first run.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: no checkpoint in that folder.
        ValueError: a checkpoint of another potential, sampler, tuner or other data, or with other
            functions in them, as far as what they compute tells; the difference is named. A file
            that is damaged or of another run.
        RuntimeError: another process runs in that folder.
    """
    check_choice("progress", progress, [True, False])
    what = _sampled(sampler, "resume")
    if num_draws is not None:
        check_positive_int("num_draws", num_draws)
    folder = as_path("checkpoint", checkpoint)
    if not (folder / STATE_FILE).is_file():
        raise FileNotFoundError(f"There is no file {folder / STATE_FILE}.")
    if isinstance(what, ModelPotential):
        data = _held(what, data)
    saved = Saved.read(folder)
    storage = as_storage(_place(saved) if store is None else store)
    runs, tuner, chosen = _as_it_was(folder, saved, what, data, tuner)
    # An end that was set by the caller is the caller's to set again.
    goes_on = chosen and saved.meta["chosen"]["until_converged"] and num_draws is None
    ends = Ends(target_ess, target_rhat, max_seconds)
    ends.check(runs.interacting)
    watcher = ends.added_to(monitor, goes_on)
    settings = Settings(**saved.meta["settings"])
    world = world_of(processes, runs, settings.num_particles)
    _check_apart(world, settings.compile)
    with world.guard(), run_that_is_there(folder, world):
        return _resumed(
            folder, runs, data, step_size, num_draws, storage, watcher, tuner, progress, world
        )


def _as_it_was(
    folder: Path, saved: Saved, what: Sampler | ModelPotential, data: Any, tuner: Tuner | None
) -> tuple[Sampler, Tuner | None, bool]:
    """Sampler and tuner of a run, and whether they were chosen by it."""
    chosen = saved.meta["chosen"]
    if chosen is not None and tuner is None:
        return *recall(what, data, saved.part("chosen"), chosen), True
    if isinstance(what, Sampler):
        return what, tuner, False
    raise ValueError(
        f"The run in {folder} was given its sampler, so resume needs it too, made again."
    )


def _place(saved: Saved) -> str | None:
    """Where the draws of a run are, if they are not in its checkpoint."""
    path: str | None = saved.meta["receipt"].get("path")
    return path


def _resumed(
    folder: Path,
    sampler: Sampler,
    data: DataLike,
    step_size: float | Schedule | None,
    num_draws: int | None,
    storage: Storage,
    watcher: Monitor,
    tuner: Tuner | None,
    progress: bool,
    world: RunWorld,
) -> Draws:
    """Go on with the run in a folder that nobody else uses."""
    saved = Saved.read(folder)
    settings = dataclasses.replace(
        Settings(**saved.meta["settings"]), num_particles=len(world.mine)
    )
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
        if num_draws is not None:
            settings = _extended(settings, int(num_draws))
        plan = Plan.of(sampler, checked, settings, schedule, storage, tuner, folder, world)
        if not world.alone:
            world.check_same(plan.summary)
        return Loop.restore(plan, saved).run(watcher, progress)


def _extended(settings: Settings, num_draws: int) -> Settings:
    """A run made longer."""
    if num_draws < settings.num_draws:
        raise ValueError(
            f"The run was to have {settings.num_draws} draws; num_draws={num_draws} would be "
            "fewer. End it by monitor=, or take a part of its draws."
        )
    return dataclasses.replace(settings, num_draws=num_draws)


def _sampled(what: Sampler | Potential, caller: str = "sample") -> Sampler | ModelPotential:
    """A sampler, or a potential with all that is asked of one."""
    if isinstance(what, Sampler):
        return what
    if not is_potential(what):
        raise TypeError(
            f"{caller}() takes a sampler, such as pvi.sghmc(potential), or a potential, got "
            f"{type(what).__name__}."
        )
    return as_potential(what)


def _held(potential: ModelPotential, data: DataLike) -> Data:
    """The data in memory: where the sampler is chosen, every step may take them all."""
    if potential.random:
        raise ValueError(
            "The energy of this potential is drawn anew at every evaluation (dropout='sample'), "
            "and what is chosen here uses its value: give a sampler that uses gradients only, such "
            "as pvi.sghmc(potential), and a step_size; or take dropout='off'."
        )
    held = as_data(data, potential).held()
    if held.loader is not None:
        raise ValueError(
            "The data of the loader take more than 1 GiB, and where the sampler is chosen every "
            "step may take them all: pass tensors, or give a sampler for minibatches, such as "
            "pvi.sghmc(potential)."
        )
    return held


def _prepared(
    what: Sampler | ModelPotential,
    data: DataLike,
    step_size: float | Schedule | None,
    tuner: Tuner | None,
    num_particles: int | None,
    initial: Initial,
    batch_size: int | None,
    seed: int,
    fewest: int,
) -> Setup:
    """What nobody chose, chosen."""
    if isinstance(what, ModelPotential) and not (step_size is None and tuner is None):
        raise ValueError(
            "With a potential in place of a sampler everything is chosen: leave step_size and "
            "tuner out, or give a sampler, such as pvi.sghmc(potential)."
        )
    potential = what if isinstance(what, ModelPotential) else what.potential
    named = initial is None or isinstance(initial, str)
    countless = named or isinstance(initial, Mapping)
    if isinstance(what, ModelPotential) and num_particles is None and countless:
        num_particles = _CHAINS
    points = _start(potential, num_particles, initial, seed)
    if len(points) < fewest:
        raise ValueError(
            "A run of a potential ends by R-hat, which takes two chains or more, got "
            f"{len(points)}: raise num_particles, or give num_draws."
        )
    generator = torch.Generator(points.device).manual_seed(int(seed))
    keep = not named
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


def _check_apart(world: RunWorld, compile: bool) -> None:
    """A compiled step is that of one process."""
    if compile and not world.apart:
        raise ValueError(
            "Where several processes make one step together, it is not compiled: leave compile "
            "out, or run in one process."
        )


def _check_compilable(sampler: Sampler) -> None:
    check_compiler()
    potential = sampler.potential
    if not potential.compilable:
        raise ValueError(
            "compile=True needs a potential that torch.compile can trace, but a "
            f"{potential.fingerprint.get('kind', '?')} model runs Python code of its own at every "
            "step. Leave compile out, or write the model as a module (from_module) or as a "
            "log-likelihood in torch operations (from_log_likelihood)."
        )
