"""Where method, estimator and batches meet: what a law rests on, checked before the first step."""

from __future__ import annotations

from typing import Literal, TypeAlias

from particlevi.data.batching import Law
from particlevi.typing import Sampler

__all__ = ["Drawn", "check_requirements"]

Drawn: TypeAlias = Law | Literal["all"] | None
"""How the data of a batch are drawn: one of the laws of minibatches, all of them, or unknown."""

_IN_WORDS = {
    "replacement": 'minibatches drawn with replacement (batching="replacement")',
    "subset": 'random subsets (batching="subset")',
    "epoch": 'a random order of the data, batch after batch (batching="epoch")',
    None: "batches of a loader, whose law is not known",
}


def check_requirements(sampler: Sampler, drawn: Drawn) -> None:
    """Refuse an estimator or batches under which a method does not sample what it says.

    Args:
        sampler: with what it requires.
        drawn: how the data of a batch are drawn.

    Raises:
        ValueError: what came, what the method needs, and the way out.
    """
    needs, estimator = sampler.requires, sampler.estimator
    if needs.energy and not estimator.conservative:
        raise ValueError(
            f"{sampler.name} uses the value of the potential beside its gradient, so the gradient "
            f"must be that of the value; under {estimator.name} it is the gradient of another "
            "function, and the law would be wrong. Take the potential itself in place of the "
            "estimator, or a method that uses gradients only, such as sghmc or sgld."
        )
    if needs.all_data and drawn != "all":
        raise ValueError(
            f"{sampler.name} accepts or rejects by the energy of all data, each of them once, got "
            f"{_IN_WORDS[drawn]}: leave batch_size out, and give the data as tensors. A batch of "
            "N data drawn with replacement is not all the data."
        )
    if needs.independent_data and drawn not in ("all", "replacement"):
        raise ValueError(
            f"{sampler.name} with these arguments takes the gradient noise of different steps for "
            f'independent, got {_IN_WORDS[drawn]}: use batching="replacement" and data as tensors, '
            "or give the variance of the noise as a number."
        )
    if needs.chains and (sampler.interacting or estimator.interacting):
        raise ValueError(
            f"{sampler.name} needs particles that do not see each other, but under "
            f"{estimator.name} they do: take an estimator whose chains are independent "
            "(history(pooled=False))."
        )
