"""What every sampler must do, under every estimator, on every kind of potential, in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.gradients.minibatch import minibatch
from particlevi.running.compiling import check_compiler
from particlevi.streams import ParticleStreams
from particlevi.testing._expect import NUM_PARTICLES, equal, expect, own, unchanged
from particlevi.testing.problems import PROBLEMS, Problem
from particlevi.typing import (
    Batch,
    Controls,
    GradientEstimator,
    Progress,
    Sampler,
    SamplerState,
)

__all__ = ["CHECKS", "NUM_PARTICLES", "Setting", "check_sampler"]

NUM_STEPS = 3


class Setting:
    """A sampler on a problem, with all that a step takes.

    Args:
        factory: the sampler of an estimator.
        step_size: stable for curvatures up to 200.
        estimator: of the gradient, for a problem.
        problem: makes the problem in a dtype.
        dtype: of everything.
    """

    def __init__(
        self,
        factory: Callable[[Any], Sampler],
        step_size: float,
        estimator: Callable[[Problem], GradientEstimator],
        problem: Callable[[torch.dtype], Problem],
        dtype: torch.dtype = torch.float64,
    ):
        self._made = (factory, step_size, estimator, problem)
        self.problem: Problem = problem(dtype)
        self.estimator: GradientEstimator = estimator(self.problem)
        self.sampler: Sampler = factory(self.estimator)
        self.controls: Controls = {"step_size": torch.tensor(step_size, dtype=dtype)} | {
            name: torch.tensor(schedule(0), dtype=dtype)
            for name, schedule in self.sampler.schedules.items()
        }
        self.start: Tensor = self.problem.start(NUM_PARTICLES)

    def in_dtype(self, dtype: torch.dtype) -> Setting:
        """The same in another dtype."""
        return Setting(*self._made, dtype)

    def batch(self, seed: int = 0) -> Batch | None:
        """All the data if the sampler needs them; else a minibatch, one for each chain."""
        if self.sampler.requires.all_data:
            return self.problem.whole()
        shared = self.sampler.interacting
        return self.problem.batch(None if shared else NUM_PARTICLES, seed=seed)

    def run(
        self, step: Callable[..., Any] | None = None, seed: int = 0
    ) -> list[tuple[SamplerState, Any]]:
        """The states and infos of a few steps."""
        step = step or self.sampler.step
        streams = ParticleStreams(seed)
        state = self.sampler.init(self.start, streams)
        path = []
        for k in range(NUM_STEPS):
            noise = self.sampler.draw_noise(state, streams)
            state, info = step(state, self.batch(seed + k), noise, self.controls)
            path.append((state, info))
            copy = pytree.tree_map(torch.clone, state)
            state = self.sampler.record(copy, Progress(k + 1, 0, 9))
        return path


def check_protocol(setting: Setting) -> None:
    """A sampler, whose states and infos have the shapes and values that the loop relies on."""
    sampler = setting.sampler
    expect(isinstance(sampler, Sampler), f"the factory gives no Sampler but {type(sampler)}")
    expect(
        sampler.potential is setting.problem.potential, "sampler.potential is not what was given"
    )
    for state, info in setting.run():
        expect(isinstance(state, SamplerState), f"a step ends in no SamplerState: {type(state)}")
        expect(
            state.position.shape == setting.start.shape,
            f"positions {list(state.position.shape)} are not {list(setting.start.shape)}",
        )
        for name in ("memory", "estimator"):
            part = getattr(state, name)
            expect(hasattr(part, "_fields"), f"the {name} of a state is no NamedTuple")
        expect(
            getattr(info, "_fields", ("",))[0] == "potential",
            "info is no NamedTuple whose first field is the potential",
        )
        for name, value in info._asdict().items():
            expect(value.shape == (NUM_PARTICLES,), f"info.{name} {list(value.shape)} is not [P]")
        watched = sampler.watched(info, setting.controls)
        expect(watched.shape == (NUM_PARTICLES,), f"watched {list(watched.shape)} is not [P]")
        unknown = set(sampler.shown) - set(info._fields)
        expect(not unknown, f"shown names {sorted(unknown)}, which info does not have")
        for leaf in pytree.tree_leaves((state, info)):
            expect(bool(torch.isfinite(leaf).all()), "a value of state or info is not finite")
            expect(not leaf.requires_grad, "a value of state or info carries a gradient")
    expect(
        len(setting.start[sampler.draws]) > 0, f"draws={sampler.draws} keeps none of the particles"
    )


def check_purity(setting: Setting) -> None:
    """A step is a function of its arguments: it leaves them alone and repeats bit for bit."""
    sampler, streams = setting.sampler, ParticleStreams(0)
    start = setting.start.clone()
    state, batch = sampler.init(setting.start, streams), setting.batch()
    for _ in range(2):
        arguments = (state, batch, sampler.draw_noise(state, streams), setting.controls)
        state, _ = unchanged(partial(sampler.step, *arguments), arguments, "a step")
        again, _ = sampler.step(*arguments)
        equal(again, state, "a step with the same arguments ends elsewhere")
    equal(setting.start, start, "init or a step writes into the starting points")


def check_dtype(setting: Setting) -> None:
    """Particles, memory and infos keep the dtype of the potential."""
    for dtype in (torch.float32, torch.float64):
        for leaf in pytree.tree_leaves(setting.in_dtype(dtype).run()):
            kept = leaf.dtype == dtype or not leaf.is_floating_point()
            expect(kept, f"a value is {leaf.dtype} where the potential is {dtype}")


def check_seed(setting: Setting) -> None:
    """The seed decides the draws, and nothing else does."""
    first, same, other = (setting.run(seed=seed) for seed in (0, 0, 100))
    equal(first, same, "two runs with one seed differ")
    streams = ParticleStreams(0)
    noise = setting.sampler.draw_noise(setting.sampler.init(setting.start, streams), streams)
    random = bool(pytree.tree_leaves(noise)) or setting.problem.data is not None
    if random and not setting.sampler.interacting and not setting.sampler.requires.all_data:
        differ = not torch.equal(first[-1][0].position, other[-1][0].position)
        expect(differ, "runs with different seeds agree, though noise or minibatches differ")


def check_independence(setting: Setting) -> None:
    """Chains move as each would alone, unless the sampler or the estimator says otherwise."""
    sampler = setting.sampler
    if sampler.interacting or setting.estimator.interacting or sampler.draws != slice(None):
        return
    streams = ParticleStreams(0)
    state = sampler.init(setting.start, streams)
    state, _ = sampler.step(
        state, setting.batch(), sampler.draw_noise(state, streams), setting.controls
    )
    batch, noise = setting.batch(1), sampler.draw_noise(state, streams)
    together = sampler.step(state, batch, noise, setting.controls)
    for i in range(NUM_PARTICLES):
        alone = sampler.step(own(state, i), own(batch, i), own(noise, i), setting.controls)
        equal(
            alone,
            own(together, i),
            f"chain {i} moves otherwise among others (Facts(kind='particles') if that is meant)",
            rtol=1e-12,
            atol=1e-12,
        )


def check_compiled(setting: Setting) -> None:
    """The step compiles whole, once, and gives the same."""
    check_compiler()
    eager = setting.run()
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        step = torch.compile(setting.sampler.step, backend="eager", fullgraph=True, dynamic=False)
        compiled = setting.run(step)
    equal(compiled, eager, "the compiled step differs", rtol=1e-10, atol=1e-12)


CHECKS: Mapping[str, Callable[[Setting], None]] = {
    "protocol": check_protocol,
    "purity": check_purity,
    "dtype": check_dtype,
    "seed": check_seed,
    "independence": check_independence,
    "compiled": check_compiled,
}


def check_sampler(
    factory: Callable[[Any], Sampler],
    step_size: float,
    *,
    estimators: Mapping[str, Callable[[Problem], GradientEstimator]] | None = None,
    compile: bool = True,
) -> None:
    """Run the contract on a sampler: what ``sample`` relies on, on every kind of potential.

    Args:
        factory: the sampler of a potential or an estimator, such as ``pvi.sgld``.
        step_size: h, stable for curvatures up to 200.
        estimators: of the gradient, by name; the plain one if absent.
        compile: whether the step is compiled too, which takes seconds.

    Raises:
        AssertionError: what is broken, on which problem.

    Examples:
        >>> import particlevi as pvi
        >>> check_sampler(pvi.sgld, step_size=1e-3, compile=False)
    """
    chosen = estimators or {"minibatch": lambda problem: minibatch(problem.potential)}
    for problem_name, problem in PROBLEMS.items():
        for name, estimator in chosen.items():
            setting = Setting(factory, step_size, estimator, problem)
            for check_name, check in CHECKS.items():
                if compile or check_name != "compiled":
                    try:
                        check(setting)
                    except AssertionError as error:
                        error.add_note(
                            f"{check_name}, {setting.sampler.name} with {name} on {problem_name}"
                        )
                        raise
