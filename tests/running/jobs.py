"""What the processes of ``test_ranks.py`` do; run by ``python -m tests.running.jobs SIZE FILE``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import particlevi as pvi
from particlevi.distributed import Peers
from particlevi.running import Every, blocks, ranks
from tests.processes import run_job

P = 6
VICTIM = 1
QUIET: dict[str, Any] = {"seed": 1, "progress": False}
SHORT: dict[str, Any] = {**QUIET, "num_particles": P, "num_draws": 6, "step_size": 1e-3}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Forty points of a linear law."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64) + noise


def net() -> Any:
    """The potential of a small net on them."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    return pvi.from_module(module.double(), pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=40)


def line() -> Any:
    """The potential of a straight line on them."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1).double()
    return pvi.from_module(module, pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=40)


def runs() -> dict[str, Callable[[], pvi.Draws]]:
    """A run of each family."""
    xy, potential = data(), net()
    structured = pvi.structured(potential, groups="tensor", history=pvi.gradients.history(2))
    mini: dict[str, Any] = {**SHORT, "batch_size": 8}
    tuned = {**QUIET, "num_particles": P, "num_draws": 4, "num_warmup": 60}

    def run(sampler: Any, **options: Any) -> Callable[[], pvi.Draws]:
        return lambda: pvi.sample(sampler, xy, **options)

    return {
        "sgld": run(pvi.sgld(potential), **mini),
        "sgld_subset": run(pvi.sgld(potential), **mini, batching="subset"),
        "sghmc_epoch": run(pvi.sghmc(potential), **mini, batching="epoch"),
        "psgld": run(pvi.psgld(potential), **mini),
        "shared_batch": run(
            pvi.sgld(potential), **mini, batching=pvi.data.Minibatches("replacement", shared=True)
        ),
        "control_variate": run(pvi.sgld(pvi.control_variate(potential, xy, refresh=3)), **mini),
        "structured": run(pvi.sghmc(structured), **mini),
        "sgd": run(pvi.sgd(potential), **mini),
        "hmc": run(pvi.hmc(potential), **SHORT),
        "hmc_tuned": run(pvi.hmc(potential), **tuned, tuner=pvi.tuning.windows()),
        "hmc_chees": run(
            pvi.randomized_hmc(potential),
            **tuned,
            tuner=pvi.tuning.windows("low_rank", trajectory_length="chees"),
        ),
        "mclmc_tuned": run(pvi.mclmc(potential), **tuned, tuner=pvi.tuning.energy_error()),
        "mclmc_low_rank": run(
            pvi.mclmc(potential), **tuned, tuner=pvi.tuning.energy_error(metric="low_rank")
        ),
        "mams": run(pvi.mams(potential), **SHORT),
        "tempering": run(pvi.parallel_tempering(potential, (1.0, 2.0)), **mini),
        "svgd": run(pvi.svgd(potential), **mini),
        "svgd_imq_adam": run(pvi.svgd(potential, pvi.kernels.imq(), "adam"), **mini),
        "message_passing": run(pvi.message_passing_svgd(potential), **mini),
        "repulsive": run(pvi.repulsive_langevin(potential), **mini),
        "nvgd": run(pvi.nvgd(potential), **mini),
    }


def told(draws: pvi.Draws) -> dict[str, Any]:
    """What is compared of a run."""
    return {
        "particles": draws.particles.numpy(),
        "chains": draws.chains,
        "diverged": draws.diverged,
        "stats": {k: v.numpy() for k, v in draws.stats.items()},
        "ended_by": draws.attrs["ended_by"],
        "gradients": draws.gradients,
        "end": None if draws.end is None else draws.end.numpy(),
        "mean": None if draws.moments is None else draws.moments.mean.numpy(),
    }


def same_draws(number: int) -> dict[str, Any]:
    """The draws of every family."""
    return {name: told(run()) for name, run in runs().items()}


def transposed() -> dict[str, Callable[[], pvi.Draws]]:
    """Stein samplers whose particles can lie in different processes."""
    potential = net()
    mini: dict[str, Any] = {**SHORT, "num_particles": 7, "batch_size": 8}
    ramp = pvi.schedules.tanh_ramp(6)
    samplers = {
        "rbf": pvi.svgd(potential),
        "imq_adam": pvi.svgd(potential, pvi.kernels.imq(), "adam"),
        "linear_annealed": pvi.svgd(potential, pvi.kernels.linear(), "rmsprop", annealing=ramp),
    }

    def run(sampler: Any) -> pvi.Draws:
        return pvi.sample(sampler, data(), **mini)

    return {name: partial(run, sampler) for name, sampler in samplers.items()}


def by_columns(number: int) -> dict[str, Any]:
    """Their draws, and how many numbers a process sent in a step."""
    ranks.WIDE = 0
    sent, before = [], Peers.swap

    def counted(self: Peers, *arguments: Any) -> torch.Tensor:
        had = self.num_sent
        found = before(self, *arguments)
        sent.append(self.num_sent - had)
        return found

    Peers.swap = counted
    found = {name: told(run()) for name, run in transposed().items()}
    Peers.swap, ranks.WIDE = before, 2**20
    steps = len(found) * SHORT["num_draws"]
    return {**found, "sent": sum(sent) / steps}


def plain_loop(more: Any, one: Any, carried: Any) -> Any:
    """What torch's loop means."""
    while more(*carried):
        carried = one(*carried)
    return carried


@contextmanager
def without_compiler() -> Iterator[list[int]]:
    """Blocks of steps run as they are; their lengths."""
    lengths: list[int] = []
    before = blocks.while_loop, blocks.compiled_as, blocks.Blocks.advance

    def counted(self: Any, *arguments: Any) -> Any:
        block = before[2](self, *arguments)
        lengths.append(block.steps)
        return block

    blocks.while_loop, blocks.Blocks.advance = plain_loop, counted
    blocks.compiled_as = lambda sampler, kind, make: make()
    try:
        yield lengths
    finally:
        blocks.while_loop, blocks.compiled_as, blocks.Blocks.advance = before


def in_blocks(number: int) -> dict[str, Any]:
    """Chains whose steps are made in blocks, with a rule that looks between two draws."""
    looked: list[int] = []
    watch = Every(5, lambda look: looked.append(look.step))
    run = {**SHORT, "batch_size": 8, "thin": 7, "monitor": watch, "compile": True}
    with without_compiler() as lengths:
        found = _caught(lambda: pvi.sample(pvi.sgld(net()), data(), **run))
    return {**found, "lengths": lengths, "looked": looked}


def never_compiled(number: int) -> dict[str, Any]:
    """Steps that processes make together."""
    run = {**SHORT, "batch_size": 8, "compile": True}
    found = {}
    for name, wide in (("gathered", ranks.WIDE), ("columns", 0)):
        before, ranks.WIDE = ranks.WIDE, wide
        found[name] = _caught(lambda: pvi.sample(pvi.svgd(net()), data(), **run))
        ranks.WIDE = before
    return found


def automatic(number: int) -> dict[str, Any]:
    """A run that nobody tuned."""
    draws = pvi.sample(line(), data(), **QUIET, num_particles=4)
    return {**told(draws), "tuning": draws.attrs["tuning"]}


def _caught(run: Callable[[], Any]) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            draws = run()
    except Exception as error:
        kept = getattr(error, "draws", None)
        return {
            "error": type(error).__name__,
            "message": str(error),
            "draws": None if kept is None else list(kept.particles.shape),
        }
    return {**told(draws), "warnings": [str(w.message) for w in caught]}


def _cliff(where: float) -> Any:
    """A standard normal whose potential is not finite beyond a point."""

    def log_density(theta: torch.Tensor) -> torch.Tensor:
        inside = -0.5 * theta.square().sum()
        return torch.where(theta.max() > where, torch.nan, inside)

    return pvi.from_log_density(log_density, num_params=2)


def lost_chain(number: int) -> dict[str, Any]:
    """Chain 4 begins where the potential falls without end."""

    def log_density(theta: torch.Tensor) -> torch.Tensor:
        square = 0.5 * theta.square().sum()
        return torch.where(square > 50, square, -square)

    start = torch.zeros(P, 2)
    start[4] = 20.0
    run = {**SHORT, "num_particles": None, "initial": start, "num_draws": 300, "step_size": 0.5}
    potential = pvi.from_log_density(log_density, num_params=2)
    return _caught(lambda: pvi.sample(pvi.sgld(potential), **run))


def all_lost(number: int) -> dict[str, Any]:
    """No chain is left."""
    start = torch.full((P, 2), 49.999)
    run = {**SHORT, "num_particles": None, "initial": start, "num_draws": 400, "step_size": 0.3}
    return _caught(lambda: pvi.sample(pvi.sgld(_cliff(50.0), temperature=1e6), **run))


def sharded(number: int) -> dict[str, Any]:
    """Draws that are not gathered, and a rule that sees them all."""
    seen: list[int] = []
    store = pvi.storage.InMemory(sharded=True)
    watch = Every(3, lambda look: seen.append(len(look.draws())))
    run = {**SHORT, "batch_size": 8, "store": store, "monitor": watch}
    chains = _caught(lambda: pvi.sample(pvi.sgld(net()), data(), **run))
    coupled = _caught(lambda: pvi.sample(pvi.svgd(net()), data(), **run))
    return {"chains": chains, "coupled": coupled, "seen": seen}


def other_data(number: int) -> dict[str, Any]:
    """One process has other data."""
    x, y = data()
    x = x + (number == VICTIM)
    return _caught(lambda: pvi.sample(pvi.sgld(net()), (x, y), **SHORT, batch_size=8))


def _at_step(number: int, act: Callable[[], None]) -> dict[str, Any]:
    """Something happens in one process at its hundredth evaluation."""
    calls = 0

    def log_density(theta: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= 100 and number == VICTIM:
            act()
        return -0.5 * theta.square().sum()

    potential = pvi.from_log_density(log_density, num_params=2)
    run = {**SHORT, "num_draws": 1000}
    return _caught(lambda: pvi.sample(pvi.sgld(potential), **run))


def failure(number: int) -> dict[str, Any]:
    """A process fails on its way."""

    def act() -> None:
        raise OSError("the disk is gone")

    return _at_step(number, act)


def death(number: int) -> dict[str, Any]:
    """A process is killed on its way."""
    ranks._PATIENCE = 2.0
    return _at_step(number, lambda: os._exit(0))


def again(number: int) -> dict[str, Any]:
    """A run after one that ended in all processes."""
    all_lost(number)
    return _caught(lambda: pvi.sample(pvi.sgld(net()), data(), **SHORT, batch_size=8))


def rules(number: int) -> dict[str, Any]:
    """A target for the draws of all, and a function that looks."""
    seen: list[int] = []
    potential = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(), num_params=2)
    run = {**SHORT, "num_draws": 10_000, "step_size": 0.3}
    watch = [pvi.running.converged(300, 1.1), Every(100, lambda look: seen.append(look.step))]
    return {
        **_caught(lambda: pvi.sample(pvi.sghmc(potential), **run, monitor=watch)),
        "seen": seen,
    }


def one_only(number: int) -> dict[str, Any]:
    """One process samples alone."""
    if number != VICTIM:
        return {}
    run = {**SHORT, "batch_size": 8, "processes": "one"}
    return _caught(lambda: pvi.sample(pvi.sgld(net()), data(), **run))


def mesh(number: int) -> dict[str, Any]:
    """Particles over one axis, data over the other."""
    size = dist.get_world_size()
    both = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("particles", "data"))
    run = {**SHORT, "batch_size": 8, "processes": both}
    return {
        "sgld": _caught(lambda: pvi.sample(pvi.sgld(net()), data(), **run)),
        "svgd": _caught(lambda: pvi.sample(pvi.svgd(net()), data(), **run)),
        "misnamed": _caught(
            lambda: pvi.sample(
                pvi.sgld(net()),
                data(),
                **{**run, "processes": init_device_mesh("cpu", (size,), mesh_dim_names=("dp",))},
            )
        ),
    }


def few(number: int) -> dict[str, Any]:
    """Fewer particles than processes."""
    run = {**SHORT, "num_particles": 1, "batch_size": 8}
    return _caught(lambda: pvi.sample(pvi.sgld(net()), data(), **run))


def masks(number: int) -> dict[str, Any]:
    """A model that draws masks, under chains that do not see each other."""
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 1))
    drawn = pvi.from_module(
        model.double(), pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=40, dropout="sample"
    )
    return _caught(lambda: pvi.sample(pvi.sgld(drawn), data(), **SHORT, batch_size=8))


def saved(number: int, folder: str) -> dict[str, Any]:
    """Runs that were stopped half way, each with a checkpoint in a folder of its own."""

    def run(name: str) -> pvi.Draws:
        sampler, options = resumable()[name]
        stop = Every(30, lambda look: "half way")
        place = pvi.storage.Checkpoint(f"{folder}/{name}", every=10)
        given = {**QUIET, "num_particles": P, "monitor": stop, "checkpoint": place, **options}
        return pvi.sample(sampler, data(), **given)

    return {name: _caught(partial(run, name)) for name in resumable()}


def resumed(number: int, folder: str) -> dict[str, Any]:
    """The same runs, gone on with to their ends."""

    def run(name: str) -> pvi.Draws:
        sampler, options = resumable()[name]
        given = {name: options.get(name) for name in ("tuner", "store")}
        return pvi.resume(f"{folder}/{name}", sampler, data(), progress=False, **given)

    return {name: _caught(partial(run, name)) for name in resumable()}


def resumable() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Samplers and options of runs of more than thirty steps."""
    potential = net()
    mini = {"num_draws": 60, "step_size": 1e-3, "batch_size": 8}
    history = pvi.structured(potential, groups="tensor", history=pvi.gradients.history(2))
    return {
        "sghmc": (pvi.sghmc(potential), {**mini, "batching": "epoch"}),
        "online": (
            pvi.sghmc(potential, gradient_noise="online", friction=9.0),
            {**mini, "step_size": 1e-4},
        ),
        "refreshed": (pvi.sgld(pvi.control_variate(potential, data(), refresh=7)), mini),
        "structured": (pvi.sghmc(history), mini),
        "svgd": (pvi.svgd(potential), mini),
        "kept": (
            pvi.sgld(potential),
            {**mini, "store": pvi.storage.InMemory(keep=["0.*", pvi.storage.moments()])},
        ),
        "tuned": (
            pvi.hmc(line()),
            {"num_draws": 10, "num_warmup": 50, "tuner": pvi.tuning.windows()},
        ),
    }


JOBS = (
    same_draws,
    by_columns,
    lost_chain,
    all_lost,
    again,
    sharded,
    other_data,
    few,
    masks,
    rules,
    one_only,
    in_blocks,
    never_compiled,
)


def every(number: int) -> dict[str, Any]:
    """All jobs after which the group still stands."""
    return {job.__name__: job(number) for job in JOBS}


if __name__ == "__main__":
    run_job(every, mesh, automatic, failure, death, saved, resumed)
