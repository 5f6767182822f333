"""Where method, estimator and batches meet: what a law rests on, checked before the first step."""

from __future__ import annotations

from particlevi.data import BatchSource, Law
from particlevi.typing import Sampler

__all__ = ["check_requirements"]

_IN_WORDS: dict[Law, str] = {
    "none": "no data",
    "all": "all of them",
    "independent": 'minibatches drawn with replacement (batching="replacement")',
    "subset": 'random subsets (batching="subset")',
    "epoch": 'a random order of the data, batch after batch (batching="epoch")',
    "loader": "the batches of a loader",
}


def check_requirements(sampler: Sampler, source: BatchSource) -> None:
    """Refuse an estimator or batches under which a method does not sample what it says.

    Args:
        sampler: with what it requires.
        source: of the batches, which declares their law.

    Raises:
        ValueError: what came, what the method needs, and the way out.
    """
    needs, estimator, law = sampler.requires, sampler.estimator, source.law
    example = source.example()
    exact = example is None or example.complete
    if needs.energy and not estimator.conservative:
        raise ValueError(
            f"{sampler.name} uses the value of the potential beside its gradient, so the gradient "
            f"must be that of the value; under {estimator.name} it is the gradient of another "
            "function, and the law would be wrong. Take the potential itself in place of the "
            "estimator, or a method that uses gradients only, such as sghmc or sgld."
        )
    if needs.all_data and not exact:
        raise ValueError(
            f"{sampler.name} accepts or rejects by the energy of all data, each of them once, got "
            f"{_IN_WORDS[law]}: leave batch_size out, and give the data as tensors. A batch of "
            "N data drawn with replacement is not all the data."
        )
    if needs.independent_data and law in ("epoch", "loader") and not exact:
        raise ValueError(
            f"{sampler.name} with these arguments takes the gradient noise of different steps for "
            f'independent, got {_IN_WORDS[law]}: use batching="replacement" or "subset" and '
            "data as tensors, or give the variance of the noise as a number."
        )
    if needs.chains and (sampler.interacting or estimator.interacting):
        raise ValueError(
            f"{sampler.name} needs particles that do not see each other, but under "
            f"{estimator.name} they do: take an estimator whose chains are independent "
            "(history(pooled=False))."
        )
