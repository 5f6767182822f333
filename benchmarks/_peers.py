"""One model and one method in particlevi, posteriors and blackjax, ready to be timed.

A model is a multilayer perceptron with ReLUs and a normal prior; particles ``[P, D]`` are its
parameters in torch's order. A method means the same in all libraries: ``theta' = theta - h grad U +
sqrt(2 h) xi``, or unit-mass Langevin dynamics with the friction in 1/time. The libraries' own
conventions for both are these.

posteriors is run by ``torch.vmap`` over the chains, as its documentation says, and compiled on
request; blackjax in a jitted ``lax.scan`` over a ``vmap``. Its ``sghmc`` draws a new momentum and
keeps one minibatch for all the steps of a call: a call counts as that many gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LIBRARIES", "Method", "Model", "Run"]

Run = Callable[[Tensor, int, int, int], tuple[Tensor, float]]
"""``(start [P, D], num_draws, thin, seed)`` to draws ``[P, T, D]`` and seconds."""


@dataclass(frozen=True, eq=False)
class Model:
    """Data ``x [N, F]``, ``y [N, 1]``, and a net of these widths, 24-1 being a linear model.

    The likelihood is normal with standard deviation ``noise``, Bernoulli without one.
    """

    x: Tensor
    y: Tensor
    widths: tuple[int, ...]
    noise: float | None
    prior_scale: float = 1.0

    def net(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.widths[:-1], self.widths[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def potential(self) -> Any:
        import particlevi as pvi

        likelihood = pvi.Bernoulli() if self.noise is None else pvi.Gaussian(scale=self.noise)
        return pvi.from_module(
            self.net(), likelihood, pvi.Normal(self.prior_scale), num_data=len(self.x)
        )


@dataclass(frozen=True)
class Method:
    """``sgld``, ``euler`` (explicit SGHMC), ``baoa`` or ``hmc`` (full batch), with its step size.

    ``steps`` are the leapfrog steps of HMC, and the steps of a call of blackjax's SGHMC.
    """

    name: str
    step_size: float
    friction: float = 0.0
    steps: int = 10

    @property
    def gradients(self) -> int:
        """Per step of particlevi."""
        return self.steps if self.name == "hmc" else 1


def particlevi(model: Model, method: Method, batch_size: int | None, compile: bool = True) -> Run:
    import particlevi as pvi

    target, f = model.potential(), method.friction
    sampler = {
        "sgld": lambda: pvi.sgld(target),
        "euler": lambda: pvi.sghmc(target, f, integrator="explicit"),
        "baoa": lambda: pvi.sghmc(target, f),
        "hmc": lambda: pvi.hmc(target, num_leapfrog=method.steps),
    }[method.name]()

    def run(start: Tensor, num_draws: int, thin: int, seed: int) -> tuple[Tensor, float]:
        began = time.perf_counter()
        draws = pvi.sample(
            sampler,
            data=(model.x, model.y),
            batch_size=batch_size,
            initial=start,
            num_draws=num_draws,
            thin=thin,
            step_size=method.step_size,
            seed=seed,
            compile=compile,
            progress=False,
        )
        return draws.particles, time.perf_counter() - began

    return run


def posteriors(model: Model, method: Method, batch_size: int | None, compile: bool = True) -> Run:
    from posteriors.sgmcmc import baoa, sghmc, sgld
    from torch.func import functional_call

    net, count = model.net(), len(model.x)
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def log_posterior(params: Any, batch: Any) -> Any:
        inputs, targets = batch
        outputs = functional_call(net, params, (inputs,))
        if model.noise is None:
            fit = targets * outputs - nn.functional.softplus(outputs)
        else:
            fit = -0.5 * ((outputs - targets) / model.noise) ** 2
        prior = sum(-0.5 * (p / model.prior_scale).square().sum() for p in params.values())
        return count * fit.sum(-1).mean() + prior, torch.tensor([])

    h, friction = method.step_size, {"alpha": method.friction}
    module, options = {"sgld": (sgld, {}), "euler": (sghmc, friction), "baoa": (baoa, friction)}[
        method.name
    ]
    transform = module.build(log_posterior, lr=h, **options)
    State = {"sgld": "SGLDState", "euler": "SGHMCState", "baoa": "BAOAState"}[method.name]

    def one(parts: tuple[Any, ...], batch: Any) -> tuple[Any, ...]:
        state, _ = transform.update(getattr(module, State)(*parts), batch)
        moved = [state.params, *([state.momenta] if len(parts) == 2 else [])]
        return tuple({name: part[name] for name in shapes} for part in moved)

    axis = 0 if batch_size else None
    many: Any = torch.vmap(one, in_dims=(0, (axis, axis)), randomness="different")
    if compile:
        # All vmaps share a code object, whose compilations are counted, and made dynamic, together.
        torch._dynamo.reset()
        many = torch.compile(many, dynamic=False)

    def split(particles: Tensor) -> dict[str, Tensor]:
        parts = particles.split([shape.numel() for shape in shapes.values()], dim=1)
        named = zip(shapes.items(), parts, strict=True)
        return {name: part.reshape(-1, *shape) for (name, shape), part in named}

    def run(start: Tensor, num_draws: int, thin: int, seed: int) -> tuple[Tensor, float]:
        torch.manual_seed(seed)
        parts: tuple[Any, ...] = (split(start),)
        if method.name != "sgld":
            parts += (split(torch.randn_like(start)),)
        kept = torch.empty(len(start), num_draws, start.shape[1])
        batch = (model.x, model.y)
        began = time.perf_counter()
        for draw in range(num_draws):
            for _ in range(thin):
                if batch_size:
                    index = torch.randint(count, (len(start), batch_size))
                    batch = (model.x[index], model.y[index])
                parts = many(parts, batch)
            kept[:, draw] = torch.cat([p.flatten(1) for p in parts[0].values()], dim=1)
        return kept, time.perf_counter() - began

    return run


def blackjax(model: Model, method: Method, batch_size: int | None, compile: bool = True) -> Run:
    import blackjax
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(model.x.numpy()), jnp.asarray(model.y.numpy())
    count, depth = len(x), len(model.widths) - 1
    shapes = {name: tuple(p.shape) for name, p in model.net().named_parameters()}

    def log_prior(params: Any) -> Any:
        return sum(-0.5 * ((p / model.prior_scale) ** 2).sum() for p in jax.tree.leaves(params))

    def log_likelihood(params: Any, datum: Any) -> Any:
        hidden, target = datum
        for layer in range(depth):
            hidden = params[f"{2 * layer}.weight"] @ hidden + params[f"{2 * layer}.bias"]
            hidden = hidden if layer == depth - 1 else jax.nn.relu(hidden)
        if model.noise is None:
            return (target * hidden - jax.nn.softplus(hidden)).sum()
        return -0.5 * (((hidden - target) / model.noise) ** 2).sum()

    h = method.step_size
    gradient = blackjax.sgmcmc.gradients.grad_estimator(log_prior, log_likelihood, count)
    per_call = 1
    if method.name == "hmc":

        def log_density(params: Any) -> Any:
            return log_prior(params) + jax.vmap(log_likelihood, (None, 0))(params, (x, y)).sum()

        size = sum(torch.Size(shape).numel() for shape in shapes.values())
        hmc = blackjax.hmc(log_density, h, jnp.ones(size), method.steps)
        begin, position = hmc.init, lambda state: state.position
        move = lambda key, state, batch: hmc.step(key, state)[0]  # noqa: E731
    else:
        begin = position = lambda params: params
        if method.name == "sgld":
            kernel = blackjax.sgld(gradient)
        else:
            kernel = blackjax.sghmc(gradient, method.steps, alpha=method.friction)
            per_call = method.steps
        move = lambda key, params, batch: kernel.step(key, params, batch, h)  # noqa: E731

    def one(key: Any, state: Any) -> Any:
        first, second = jax.random.split(key)
        if not batch_size:
            return move(second, state, (x, y))
        index = jax.random.randint(first, (batch_size,), 0, count)
        return move(second, state, (x[index], y[index]))

    def many(key: Any, params: Any, num_draws: int, thin: int) -> Any:
        def step(state: Any, key: Any) -> Any:
            return jax.vmap(one)(jax.random.split(key, len(params["0.bias"])), state), None

        def draw(state: Any, key: Any) -> Any:
            state = jax.lax.scan(step, state, jax.random.split(key, thin))[0]
            return state, jax.vmap(position)(state)

        return jax.lax.scan(draw, jax.vmap(begin)(params), jax.random.split(key, num_draws))[1]

    compiled = jax.jit(many, static_argnums=(2, 3))

    def run(start: Tensor, num_draws: int, thin: int, seed: int) -> tuple[Tensor, float]:
        assert thin % per_call == 0, "a draw must follow whole calls"
        parts = start.split([torch.Size(shape).numel() for shape in shapes.values()], dim=1)
        named = zip(shapes.items(), parts, strict=True)
        params = {name: jnp.asarray(p.reshape(-1, *shape).numpy()) for (name, shape), p in named}
        began = time.perf_counter()
        found = compiled(jax.random.key(seed), params, num_draws, thin // per_call)
        jax.block_until_ready(found)
        seconds = time.perf_counter() - began
        flat = [torch.from_numpy(jax.device_get(found[name]).copy()).flatten(2) for name in shapes]
        return torch.cat(flat, dim=2).transpose(0, 1), seconds

    return run


LIBRARIES: dict[str, Callable[..., Run]] = {
    "particlevi": particlevi,
    "posteriors": posteriors,
    "blackjax": blackjax,
}
