"""Neural variational gradient descent: SVGD with a learned witness in place of a kernel.

Each step, with scores ``s_j = -g(x_j)`` computed once:

1. split the particles at random into training and validation particles;
2. up to K times, one Adam step on the parameters of the witness network f, on the training
   particles, for ``loss(f) = -mean[f.s + div f] + r mean |f|^2``; stop once the loss on the
   validation particles has not been the lowest so far for more than ``patience`` steps;
3. ``x_i' = x_i + h f(x_i)`` for all particles.

Target: ``exp(-U)``. The best witness is ``(grad log p - grad log q) / (2 r)`` with q the law of the
particles: for r = 1/2 it is the Wasserstein gradient flow of KL(q || p). The network's parameters
and Adam's moments go on from step to step, in the state. The divergence is Hutchinson's estimate
with one probe of +-1 per particle and inner step.

Everything is inside the step, which stays a pure function: compiled code runs all K inner steps
and freezes the network where it should have stopped; eager code stops there, with the same result.

Reference: di Langosco, Fortuin and Strathmann, "Neural variational gradient descent", 2021.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from particlevi._checks import check_fraction, check_positive, check_positive_int
from particlevi._tracing import is_compiling
from particlevi.gradients.minibatch import as_estimator
from particlevi.kernels.adam import Moments, adam
from particlevi.kernels.witness import Witness, stein_loss, value_and_gradient
from particlevi.samplers._assemble import GradientAt, Target, assemble
from particlevi.samplers._rules import LESS_WHERE_HOT, flow_step
from particlevi.typing import (
    Controls,
    Facts,
    Landscape,
    Sampler,
    SamplerState,
    Schedule,
    Streams,
)

__all__ = ["Info", "Memory", "nvgd"]


class Memory(NamedTuple):
    """The witness network's parameters ``[W]`` and Adam's moments."""

    network: Tensor
    moments: Moments


class Info(NamedTuple):
    """What a step saw, ``[P]`` each; the last three are the same for all particles.

    The losses are those of the last inner step, the validation loss NaN without validation
    particles; minus the loss is the learned Stein discrepancy.
    """

    potential: Tensor
    witness_norm: Tensor
    training_loss: Tensor
    validation_loss: Tensor
    inner_steps: Tensor


def nvgd(
    target: Target,
    network: nn.Module | None = None,
    num_inner_steps: int = 10,
    network_step_size: float | Schedule = 5e-3,
    regularisation: float = 0.5,
    validation_fraction: float = 0.25,
    patience: int = 5,
) -> Sampler:
    """Neural variational gradient descent: ``x_i' = x_i + h f(x_i)`` with a learned witness f.

    f minimises ``-mean[f.s + div f] + r mean |f|^2`` by ``num_inner_steps`` Adam steps per step of
    the particles, from where it was, with early stopping on held-out particles. At its best it is
    ``(grad log p - grad log q) / (2 r)``. Needs no kernel and no bandwidth, and a step takes
    O(P D K) numbers of memory for the probes (one byte each). It wants tens of particles: with
    few, the network learns the particles instead of their law, which early stopping guards against.

    Source: di Langosco, Fortuin and Strathmann, "Neural variational gradient descent", 2021.

    Args:
        target: a potential, or a gradient estimator.
        network: ``[P, D]`` to ``[P, D]``, row by row; by default an MLP with two hidden layers of
            32 SiLU units.
        num_inner_steps: K, at most.
        network_step_size: of Adam, a number or a schedule over the particles' steps.
        regularisation: r. Its half is the Wasserstein gradient's scale: leave it at 1/2 unless the
            step size is to absorb it.
        validation_fraction: of the particles that are held out; 0 means no early stopping.
        patience: inner steps without improvement that are tolerated.

    Raises:
        TypeError: a network that is no module.
        ValueError: an argument out of its range, or a network of other shapes.
    """
    check_positive_int("num_inner_steps", num_inner_steps)
    check_positive("regularisation", regularisation)
    if not callable(network_step_size):
        check_positive("network_step_size", network_step_size)
    check_fraction("validation_fraction", validation_fraction)
    check_positive_int("patience", patience, minimum=0)
    witness = Witness(network, as_estimator(target).potential.num_params)

    def memory(position: Tensor, streams: Streams) -> Memory:
        start = witness.init(position, streams)
        zero = torch.zeros_like(start)
        return Memory(start, Moments(zero, zero.clone(), start.new_zeros(())))

    def noise(state: SamplerState, streams: Streams) -> tuple[Tensor, Tensor]:
        position = state.position
        order = streams.shared.uniform((len(position),)).argsort()
        signs = streams.integers(2, (len(position), num_inner_steps, position.shape[1]))
        return order, signs.transpose(0, 1).to(torch.int8)

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        order, signs = noise
        g, potential = gradient_at(position)
        num = len(position)
        held_out = min(num - 1, round(num * validation_fraction))
        train, held = order[: num - held_out], order[num - held_out :]

        def loss(rows: Tensor, probes: Tensor, parameters: Tensor) -> Tensor:
            f = partial(witness, parameters)
            return stein_loss(f, position[rows], -g[rows], probes[rows], regularisation)

        network, moments = memory
        rate = controls["network_step_size"]
        best = trained = validated = position.new_full((), torch.inf)
        stale = count = position.new_zeros(())
        active = torch.ones((), dtype=torch.bool, device=position.device)
        for k in range(num_inner_steps):
            probes = 2 * signs[k].to(position.dtype) - 1
            value, gradient = value_and_gradient(partial(loss, train, probes), network)
            direction, moved = adam(gradient, moments)
            network = torch.where(active, network - rate * direction, network)
            moments = Moments(
                *(torch.where(active, new, old) for new, old in zip(moved, moments, strict=True))
            )
            count = count + active
            trained = torch.where(active, value, trained)
            if held_out:
                check = loss(held, probes, network).detach()
                validated = torch.where(active, check, validated)
                stale = torch.where(check < best, 0, stale + 1)
                best = torch.minimum(best, check)
                active = active & (stale <= patience)
                if not is_compiling() and not bool(active):
                    break
        f = witness(network, position)
        info = Info(
            potential,
            torch.linalg.vector_norm(f, dim=-1),
            trained.expand(num),
            (validated if held_out else position.new_full((), torch.nan)).expand(num),
            count.expand(num),
        )
        return position + controls["step_size"] * f, Memory(network, moments), info

    def step_rule(around: Landscape) -> tuple[float, str]:
        curvature = around.curvature()
        rate = curvature / regularisation
        return flow_step(rate, float(around.noise.mean()) / (4 * regularisation**2)), (
            "The step size is a quarter of the stable range h l / r < 2 of the flow with the best "
            f"witness, at the largest curvature where particles start, {curvature:.4g}"
            f"{LESS_WHERE_HOT}"
        )

    return assemble(
        "nvgd",
        target,
        transition,
        settings={
            "network": "default" if network is None else str(network),
            "num_inner_steps": num_inner_steps,
            "regularisation": regularisation,
            "validation_fraction": validation_fraction,
            "patience": patience,
        },
        schedules={"network_step_size": network_step_size},
        memory=memory,
        noise=noise,
        step_rule=step_rule,
        facts=Facts(kind="particles"),
    )
