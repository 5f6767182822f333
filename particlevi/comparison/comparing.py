"""``compare()``: several sets of draws of one posterior, side by side.

Predictions are the common ground: they do not depend on which hidden unit is which. Distances
between draws and effective temperatures speak of the parameters themselves, and mean little across
modes that differ by a symmetry.

Reference: Wilson, Izmailov, Hoffman, Gal, Li, Pradier, Vikram, Foong, Lotfi and Farquhar,
"Evaluating approximate inference in Bayesian deep learning", 2022 (agreement and total variation);
Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from particlevi._checks import as_list, check_choice, check_is, check_positive_int, check_seed
from particlevi.comparison import predictive_scores
from particlevi.comparison.cost_scores import costs, count
from particlevi.comparison.distance_scores import distances
from particlevi.comparison.estimates import Estimate
from particlevi.comparison.score import Score
from particlevi.comparison.subject import Setting, Subject
from particlevi.comparison.table import Comparison, Row
from particlevi.comparison.temperature_score import spectrum, temperature
from particlevi.data import DataLike, as_data
from particlevi.drawset import DrawSet, check_draws
from particlevi.potentials.potential import ModelPotential

__all__ = ["compare", "default_scores"]


def default_scores(
    num_probes: int = 20, num_directions: int = 200, num_points: int = 500
) -> list[Score]:
    """The columns of ``compare``, before that of temperatures.

    Args:
        num_probes: of the held-out inputs, at which effective sample sizes are taken.
        num_directions: for the sliced Wasserstein distance.
        num_points: draws, evenly spaced, for the two kernel discrepancies.
    """
    check_positive_int("num_probes", num_probes)
    check_positive_int("num_directions", num_directions)
    check_positive_int("num_points", num_points, minimum=2)
    return [
        count,
        *predictive_scores.SCORES,
        *distances(int(num_directions), int(num_points)),
        *costs(int(num_probes)),
    ]


def compare(
    draws: Mapping[str, DrawSet],
    data: DataLike,
    *,
    reference: str | None = None,
    train_data: Any = None,
    scores: Sequence[Score] | None = None,
    thin: int = 1,
    max_hessian: int = 1500,
    seed: int = 0,
) -> Comparison:
    """Several sets of draws of one posterior, in one table.

    Args:
        draws: by name, all of the same potential, made from a module.
        data: held-out data, as given to ``sample``; a loader too.
        reference: the set that the others are compared with; the last if absent.
        train_data: the training data. With them there are the kernel Stein discrepancy to the
            posterior and the effective temperature: the Hessian of the potential is computed at the
            mean of the reference's draws (at its draw of highest density if that is better), and
            along its eigenvectors the variance over the reference's, both within chains and
            corrected for their autocorrelation; the variance times the curvature if the reference's
            particles interact.
        scores: the columns; ``comparison.default_scores()`` if absent. Add others:
            ``[*default_scores(), Score(name, meaning, compute)]``.
        thin: use every ``thin``-th draw.
        max_hessian: with more parameters than that, no Hessian is computed, and a note says so.
        seed: of random directions and resamples.

    Returns:
        The table: ``rows``, ``table()``, and ``explain()`` with the meaning of each column.

    Raises:
        ValueError: fewer than two sets, draws of different potentials, an unknown reference, or
            two scores of one name.

    Examples:
        >>> import torch, particlevi as pvi
        >>> net, x = torch.nn.Linear(1, 1), torch.linspace(-1, 1, 40).unsqueeze(1)
        >>> model = pvi.from_module(net, pvi.Gaussian(scale=0.3), pvi.Normal(1.0), num_data=40)
        >>> run = {"num_particles": 4, "num_warmup": 300, "num_draws": 100, "progress": False}
        >>> result = compare(
        ...     {
        ...         "sgd": pvi.sample(pvi.sgd(model), (x, x), step_size=1e-3, batch_size=4, **run),
        ...         "sghmc": pvi.sample(pvi.sghmc(model), (x, x), step_size=0.02, **run),
        ...     },
        ...     data=(x, x),
        ...     train_data=(x, x),
        ... )
        >>> sorted(result.rows)
        ['sgd', 'sghmc']
    """
    check_is("draws", draws, Mapping, "sets of draws by name")
    for name, each in draws.items():
        check_draws(each, f"draws[{name!r}]")
    if len(draws) < 2:
        raise ValueError(f"A comparison takes at least two sets of draws, got {list(draws)}.")
    names = list(draws)
    reference = names[-1] if reference is None else reference
    check_choice("reference", reference, names)
    check_positive_int("thin", thin)
    check_positive_int("max_hessian", max_hessian, minimum=0)
    check_seed("seed", seed)
    columns = _checked(
        default_scores() if scores is None else as_list("scores", scores, "a list of Score")
    )
    model = _shared_model(draws)
    train = None if train_data is None else as_data(train_data, model)
    held_out = as_data(data, model, complete=False).whole().data
    setting = Setting(model, held_out, train, int(thin), max_hessian, int(seed))
    subjects = [Subject(name, each, setting) for name, each in draws.items()]
    base = subjects[names.index(reference)]
    along = spectrum(subjects, base)
    columns = [*columns, temperature(along)] if train is not None else columns
    estimates = {
        each.name: {score.name: score.compute(each, base) for score in columns} for each in subjects
    }
    notes = [along.left_out] if along.left_out else []
    for score in columns:
        notes += _left_out(score, estimates)
    rows = {name: Row(name, values) for name, values in estimates.items()}
    return Comparison(rows, reference, tuple(columns), along, tuple(notes))


def _left_out(score: Score, estimates: dict[str, dict[str, Estimate | None]]) -> list[str]:
    """A column that ranks nothing is taken out, and a note made of it."""
    column = [row[score.name] for row in estimates.values()]
    known = [each for each in column if each is not None and not math.isnan(each.error)]
    if not score.rank or not known or any(abs(e.value) > 2 * e.error for e in known):
        return []
    for row in estimates.values():
        row[score.name] = None
    shown = ", ".join(str(each) for each in known)
    return [f"{score.name} is left out, no value is beyond two of its errors ({shown})"]


def _checked(scores: list[Score]) -> list[Score]:
    for score in scores:
        if not isinstance(score, Score):
            raise TypeError(f"scores must be comparison.Score, got {type(score).__name__}.")
    names = [score.name for score in scores]
    if len(set(names)) < len(names):
        raise ValueError(f"Scores must have different names, got {names}.")
    return scores


def _shared_model(draws: Mapping[str, DrawSet]) -> ModelPotential:
    missing = [name for name, each in draws.items() if each.potential is None]
    if missing:
        raise ValueError(f"{missing} were loaded without potential: pvi.load(path, potential=...).")
    models = {name: each.model() for name, each in draws.items()}
    first_name, first = next(iter(models.items()))
    for name, model in models.items():
        if dict(model.fingerprint) != dict(first.fingerprint):
            raise ValueError(f"{first_name!r} and {name!r} are draws of different potentials.")
    if first.likelihood is None:
        raise ValueError("A comparison of predictions needs a potential made from a module.")
    return first
