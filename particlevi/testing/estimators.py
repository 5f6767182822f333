"""What every gradient estimator must do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils import _pytree as pytree

from particlevi._checks import check_flag, check_function
from particlevi.streams import ParticleStreams
from particlevi.testing._expect import NUM_PARTICLES, equal, expect, own, slopes, unchanged
from particlevi.testing.problems import PROBLEMS, Problem
from particlevi.typing import Gradient, GradientEstimator, Progress

__all__ = ["check_estimator"]


def check_estimator(
    make: Callable[[Problem], GradientEstimator], *, needs_data: bool = False
) -> None:
    """Run the contract on a gradient estimator, on every kind of potential.

    A conservative one must give the gradient of the potential which it reports; one without
    interaction must give each particle what it would give it alone.

    Args:
        make: the estimator of a problem.
        needs_data: leave out the density without data.

    Raises:
        AssertionError: what is broken.

    Examples:
        >>> import particlevi as pvi
        >>> check_estimator(lambda problem: pvi.gradients.minibatch(problem.potential))
    """
    check_function("make", make, "a problem that gives an estimator")
    check_flag("needs_data", needs_data)
    for name, problem in PROBLEMS.items():
        made = problem(torch.float64)
        if needs_data and made.data is None:
            continue
        try:
            _check(make(made), made)
        except AssertionError as error:
            error.add_note(f"on {name}")
            raise


def _check(estimator: GradientEstimator, problem: Problem) -> None:
    points, streams = problem.start(NUM_PARTICLES), ParticleStreams(0)
    expect(estimator.potential is problem.potential, "estimator.potential is not what was given")
    expect(estimator.gradients >= 1, "an estimate takes at least one gradient")
    expect(estimator.nbytes(NUM_PARTICLES) >= 0, "memory is negative")
    state = estimator.init(points, streams)
    expect(hasattr(state, "_fields"), "the state is no NamedTuple")
    noise, batch = estimator.draw_noise(state, streams), problem.batch(NUM_PARTICLES)
    arguments = (state, points, batch, noise)
    found = unchanged(lambda: estimator(*arguments), arguments, "an estimate")
    expect(isinstance(found, Gradient), f"an estimate is no Gradient but {type(found)}")
    expect(
        found.gradient.shape == points.shape,
        f"gradients {list(found.gradient.shape)} are not {list(points.shape)}",
    )
    expect(
        found.potential.shape == (NUM_PARTICLES,),
        f"potentials {list(found.potential.shape)} are not [P]",
    )
    for leaf in pytree.tree_leaves(found):
        expect(leaf.dtype == points.dtype, f"an estimate is {leaf.dtype}, not {points.dtype}")
        expect(bool(torch.isfinite(leaf).all()), "an estimate is not finite")
        expect(not leaf.requires_grad, "an estimate carries a gradient")
    equal(estimator(*arguments), found, "an estimate with the same arguments differs")
    for i in range(0 if estimator.interacting else NUM_PARTICLES):
        equal(
            estimator(*own(arguments, i)),
            own(found, i),
            f"the estimate of particle {i} is another among others (interacting=True if that is "
            "meant)",
            rtol=1e-10,
            atol=1e-10,
        )
    if estimator.conservative:
        differences = slopes(lambda at: estimator(state, at, batch, noise).potential, points)
        equal(
            found.gradient,
            differences,
            "the gradient is not that of the potential (conservative=False if that is meant)",
            rtol=1e-5,
            atol=1e-5 * float(differences.abs().max()),
        )
    state = estimator.record(pytree.tree_map(torch.clone, state), points, Progress(1, 0, 9))
    expect(hasattr(state, "_fields"), "the state after record is no NamedTuple")
