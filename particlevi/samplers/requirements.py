"""Whether a method, an estimator and a batch go together: the one place where that is decided."""

from __future__ import annotations

from particlevi.typing import Batch, GradientEstimator, Requirements

__all__ = ["check_batch", "check_estimator"]


def check_estimator(name: str, requires: Requirements, estimator: GradientEstimator) -> None:
    """Refuse an estimator that breaks the law of a method.

    Raises:
        ValueError: the gradient is not that of the potential which comes with it, or that potential
            is drawn anew at every evaluation, and the method uses its value; or particles see each
            other in the estimator, and the method needs chains.
    """
    if requires.energy and estimator.potential.random:
        raise ValueError(
            f"{name} accepts moves by the value of the potential, but this one is drawn anew at "
            "every evaluation (dropout='sample'), so that another law would be sampled. Take a "
            "sampler that uses gradients only, such as pvi.sghmc, or dropout='off'."
        )
    if requires.energy and not estimator.conservative:
        raise ValueError(
            f"{name} accepts moves by the value of the potential, but the gradient of "
            f"{estimator.name} is not that of the value which it reports, so that another law "
            "would be sampled. Take a sampler that uses gradients only, such as pvi.sghmc."
        )
    if requires.chains and estimator.interacting:
        raise ValueError(
            f"{name} needs particles that do not see each other, but {estimator.name} lets them: "
            "give each chain a history of its own (pooled=False)."
        )


def check_batch(
    name: str, requires: Requirements, batch: Batch | None, num_data: int | None
) -> None:
    """Refuse a batch that breaks the law of a method.

    Raises:
        ValueError: a minibatch where all data are needed; parts of an epoch where independent
            batches are; a shared minibatch where particles need their own.
    """
    if batch is None or batch.law == "all":
        return
    if requires.all_data:
        how = " drawn with replacement" if batch.law == "independent" else ""
        raise ValueError(
            f"{name} accepts or rejects by the energy of all {num_data} data, got a batch of "
            f"{batch.size}{how}: pass the data as tensors and leave batch_size out."
        )
    if requires.independent_data and batch.law in ("epoch", "loader"):
        raise ValueError(
            f"{name} takes the noise of the gradient for independent from step to step, but the "
            "batches of an epoch balance each other, so that too much would be taken out: use "
            'batching="replacement" or "subset" in place of "epoch" or of a DataLoader (or give '
            "that a RandomSampler with replacement=True), or a method that takes nothing out, such "
            "as pvi.sghmc without gradient_noise."
        )
    if requires.own_batches and not batch.per_particle:
        raise ValueError(
            f"{name} takes the noise of the energies of its particles for independent, but they "
            "share a minibatch: pass tensors, from which each draws its own, or all the data at "
            "every step."
        )
