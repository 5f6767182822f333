"""What every sampler, under every estimator, on every kind of potential, must do in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from particlevi.typing import Gradient, Progress, Sampler, SamplerState
from tests import registry
from tests.registry import ESTIMATORS, PROBLEMS, SAMPLERS, batch_of

P = 7  # unlike D, B and N, so that a leading 7 marks what belongs to particles
STEPS = 3

NAMES = ("sampler", "estimator", "problem")
everything = pytest.mark.parametrize(NAMES, registry.grid())


def compiled_grid() -> list[Any]:
    """All samplers with one estimator and all estimators with one sampler; the rest is slow."""
    return [
        pytest.param(*case, marks=() if "minibatch" in case or "sgld" in case else pytest.mark.slow)
        for case in registry.grid()
        if "function" not in case
    ]


class Setting:
    """A sampler at a start, with all that a step takes."""

    def __init__(
        self, sampler: str, estimator: str, problem: str, dtype: torch.dtype = torch.float64
    ):
        self.problem = PROBLEMS[problem](dtype)
        self.estimator = ESTIMATORS[estimator].make(self.problem)
        self.sampler: Sampler = SAMPLERS[sampler](self.estimator)
        self.controls = {"step_size": torch.tensor(SAMPLERS[sampler].step_size, dtype=dtype)} | {
            name: torch.tensor(schedule(0), dtype=dtype)
            for name, schedule in self.sampler.schedules.items()
        }
        generator = torch.Generator().manual_seed(2)
        size = self.problem.potential.num_params
        self.start = 0.3 * torch.randn(P, size, generator=generator, dtype=dtype)

    def run(
        self, step: Callable[..., Any] | None = None, seed: int = 0
    ) -> list[tuple[SamplerState, Any]]:
        """A few steps, each with a minibatch per particle unless particles interact."""
        step = step or self.sampler.step
        generator = torch.Generator().manual_seed(seed)
        state = self.sampler.init(self.start, generator)
        path = []
        for k in range(STEPS):
            batch = batch_of(self.problem, None if self.sampler.interacting else P, seed=seed + k)
            noise = self.sampler.draw_noise(state, generator)
            state, info = step(state, batch, noise, self.controls)
            path.append((state, info))
            state = self.sampler.record(pytree.tree_map(torch.clone, state), Progress(k + 1, 0, 9))
        return path


def assert_trees(actual: Any, expected: Any, **tolerance: float) -> None:
    """Two trees of tensors have the same structure and values."""
    left, right = pytree.tree_flatten(actual), pytree.tree_flatten(expected)
    assert left[1] == right[1]
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    for a, b in zip(left[0], right[0], strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@everything
def test_protocol(sampler, estimator, problem):
    setting = Setting(sampler, estimator, problem)
    assert isinstance(setting.sampler, Sampler)
    assert setting.sampler.potential is setting.problem.potential
    assert setting.estimator.nbytes(P) >= 0
    for state, info in setting.run():
        assert isinstance(state, SamplerState)
        assert state.position.shape == setting.start.shape
        assert hasattr(state.memory, "_fields")
        assert hasattr(state.estimator, "_fields")
        assert info._fields[0] == "potential"
        for value in info:
            assert value.shape == (P,)
        assert all(torch.isfinite(leaf).all() for leaf in pytree.tree_leaves((state, info)))
        assert not any(leaf.requires_grad for leaf in pytree.tree_leaves((state, info)))


@pytest.mark.parametrize(NAMES, [case for case in registry.grid() if case[0] == "sgld"])
def test_the_estimate_is_a_gradient(sampler, estimator, problem):
    setting = Setting(sampler, estimator, problem)
    generator = torch.Generator().manual_seed(0)
    state = setting.estimator.init(setting.start, generator)
    noise = setting.estimator.draw_noise(state, generator)
    found = setting.estimator(state, setting.start, batch_of(setting.problem, P), noise)
    assert isinstance(found, Gradient)
    assert found.gradient.shape == setting.start.shape
    assert found.potential.shape == (P,)


@everything
def test_a_step_leaves_its_arguments_as_they_were(sampler, estimator, problem):
    setting = Setting(sampler, estimator, problem)
    generator = torch.Generator().manual_seed(0)
    start = setting.start.clone()
    state = setting.sampler.init(setting.start, generator)
    batch = batch_of(setting.problem, None if setting.sampler.interacting else P)
    for _ in range(2):
        noise = setting.sampler.draw_noise(state, generator)
        arguments = (state, batch, noise, setting.controls)
        before = pytree.tree_map_only(torch.Tensor, torch.clone, arguments)
        rng = torch.get_rng_state()
        after, _ = setting.sampler.step(*arguments)
        assert_trees(arguments, before)
        assert torch.equal(torch.get_rng_state(), rng)
        again, _ = setting.sampler.step(*before)
        assert_trees(again, after)
        state = after
    assert torch.equal(setting.start, start)


@everything
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(sampler, estimator, problem, dtype):
    for state, info in Setting(sampler, estimator, problem, dtype).run():
        for leaf in pytree.tree_leaves((state, info)):
            assert leaf.dtype == dtype or not leaf.is_floating_point()


@everything
def test_the_seed_decides_the_draws(sampler, estimator, problem):
    setting = Setting(sampler, estimator, problem)
    first, same, other = (setting.run(seed=seed) for seed in (0, 0, 100))
    assert_trees(first, same)
    fixed = problem == "density" and estimator == "minibatch"
    plain = ("sgd", "sgd_momentum", "optimizer_adamw", "optimizer_pnm")
    deterministic = sampler in plain or setting.sampler.interacting
    differ = not torch.equal(first[-1][0].position, other[-1][0].position)
    if not (fixed and deterministic):
        assert differ


@pytest.mark.parametrize(NAMES, [case for case in registry.grid() if registry.independent(*case)])
def test_many_particles_move_as_each_would_alone(sampler, estimator, problem):
    setting = Setting(sampler, estimator, problem)
    generator = torch.Generator().manual_seed(0)
    state = setting.sampler.init(setting.start, generator)
    state, _ = setting.sampler.step(
        state,
        batch_of(setting.problem, P),
        setting.sampler.draw_noise(state, generator),
        setting.controls,
    )
    batch = batch_of(setting.problem, P, seed=1)
    noise = setting.sampler.draw_noise(state, generator)
    together = setting.sampler.step(state, batch, noise, setting.controls)

    def own(tree: Any, i: int) -> Any:
        return pytree.tree_map_only(
            torch.Tensor, lambda leaf: leaf[i : i + 1] if leaf.shape[:1] == (P,) else leaf, tree
        )

    for i in range(P):
        alone = setting.sampler.step(own(state, i), own(batch, i), own(noise, i), setting.controls)
        assert_trees(alone, own(together, i), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(NAMES, compiled_grid())
def test_compiled_whole_and_once_it_gives_the_same(sampler, estimator, problem):
    setting = Setting(sampler, estimator, problem)
    eager = setting.run()
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        step = torch.compile(setting.sampler.step, backend="eager", fullgraph=True, dynamic=False)
        compiled = setting.run(step)
    assert_trees(compiled, eager, rtol=1e-10, atol=1e-12)
