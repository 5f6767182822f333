"""``sample()`` and ``resume()``. They know nothing of any one sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive_int, check_seed
from particlevi.data import as_data, as_particles
from particlevi.data.tensors import is_tensors
from particlevi.draws import Draws
from particlevi.potentials.random import draw_seed
from particlevi.running.run import STATE_FILE, Run, Settings, identity
from particlevi.schedules import as_schedule, describe, restore
from particlevi.storage import checkpoint as files
from particlevi.storage.recording import describe_keep
from particlevi.tuning.stability import check_before_run
from particlevi.typing import Sampler, Schedule

__all__ = ["resume", "sample"]


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
    left out of the result, with a warning that tells the step at which it happened. Before a run of
    a thousand steps or more, a step size beyond the stable range of the sampler at the starting
    points is warned of (``pvi.tuning.check_stability``).

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
        DivergenceError: every chain, or an interacting particle, diverged. This and any other
            error on the way has an attribute ``draws`` that holds what was drawn before.

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
    if shared_batch is False and data is not None and not is_tensors(data):
        raise ValueError(
            "Batches of a DataLoader are shared by all particles: leave shared_batch out, or pass "
            "tensors, from which each chain draws its own."
        )
    if compile and not potential.compilable:
        raise ValueError(
            "compile=True needs a potential that torch.compile can trace, but a "
            f"{potential.fingerprint.get('kind', '?')} model runs Python code of its own at every "
            "step. Leave compile out, or write the model as a module (from_module) or as a "
            "log-likelihood in torch operations (from_log_likelihood)."
        )
    seeds = _Seeds.of(int(seed))
    start = _starting_points(potential, num_particles, initial, seeds.start)
    settings = Settings(
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
    if folder is not None and (folder / STATE_FILE).exists():
        raise FileExistsError(
            f"{folder} already holds a run: go on with it by pvi.resume({str(folder)!r}, sampler, "
            "data), or choose another folder."
        )
    if folder is not None and folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint must be a folder, got the file {folder}.")
    with torch.no_grad(), _global_seed(seeds.everything_else, potential.device):
        checked = as_data(data, potential)
        run = Run(sampler, checked, settings, schedule, keep, folder)
        run.start(start, seeds.noise, seeds.batches)
        check_before_run(sampler, start, checked, run.source, schedule, run.num_steps)
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
    tensors, meta = files.read(folder / STATE_FILE)
    saved = dict(meta["identity"])
    saved_data = saved.pop("data")
    found = files.differences(saved, identity(sampler), "the run's")
    if step_size is not None:
        given = describe(as_schedule("step_size", step_size))
        found += files.differences(meta["step_size"], given, "the run's step_size")
    found += files.differences(meta["keep"], describe_keep(keep), "the run's keep")
    if found:
        raise ValueError(
            f"{folder} is a checkpoint of another run, so it is not resumed:\n  "
            + "\n  ".join(found)
        )
    checked = as_data(data, sampler.potential)
    others = files.differences(saved_data, checked.fingerprint(), "the run's data")
    if others:
        raise ValueError(
            f"{folder} is the checkpoint of a run on other data, so it is not resumed:\n  "
            + "\n  ".join(others)
        )
    schedule = restore(meta["step_size"])
    if schedule is None and step_size is None:
        raise ValueError(
            "The step size of the run was a function of your own: pass it again as step_size."
        )
    settings = Settings(**meta["settings"])
    chosen = as_schedule("step_size", step_size) if step_size is not None else schedule
    assert chosen is not None
    with torch.no_grad(), _global_seed(0, sampler.potential.device):
        run = Run(sampler, checked, settings, chosen, keep, folder)
        run.restore(tensors, meta)
        return run.loop(progress)


def _starting_points(
    potential: Any, num_particles: int | None, initial: Tensor | str | None, seed: int
) -> Tensor:
    if isinstance(initial, Tensor):
        points = as_particles(initial, potential, potential.num_params, "initial")
        check_finite("initial", points, "Choose finite starting points.")
        if num_particles is not None and num_particles != len(initial):
            raise ValueError(
                f"initial holds {len(initial)} particles but num_particles is {num_particles}: "
                "leave num_particles out."
            )
        return points
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


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
