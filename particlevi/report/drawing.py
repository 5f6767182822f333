"""The page about one set of draws: verdict first, then what it rests on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from particlevi import _html
from particlevi.data import as_data
from particlevi.diagnostics import convergence, temperatures
from particlevi.diagnostics.predictive import predict
from particlevi.diagnostics.summary import summary
from particlevi.diagnostics.verdict import diagnose
from particlevi.diagnostics.views import View
from particlevi.drawset import DrawSet
from particlevi.potentials.likelihoods import plain_targets
from particlevi.report.charts import Chart, Interval, Line
from particlevi.report.page import Section, environment, figures_of, settings, write_page
from particlevi.report.predictions import of_predictions

__all__ = ["write_draws"]

_MOST_PARAMETERS = 200
_MOST_TENSORS = 12
_SHOWN = 4


def write_draws(
    draws: DrawSet,
    path: str | Path,
    data: Any = None,
    *,
    test_data: Any = None,
    inputs: Any = None,
    figures: Mapping[str, Any] | None = None,
    title: str = "Posterior draws",
    thin: int = 1,
) -> Path:
    """See ``Draws.report``."""
    verdict = diagnose(draws, data, inputs=inputs, thin=thin)
    model = draws.potential
    sampled = draws._repr_html_() + (model._repr_html_() if model is not None else "")
    chosen = _html.block("How it was run", _html.preformatted(summary(draws)))
    sections: list[Section] = [
        ("Verdict", verdict._repr_html_()),
        ("What was sampled and how", sampled + chosen),
        ("Convergence", _convergence(draws, inputs)),
        ("Temperatures", _temperatures(draws, data, thin)),
        ("Predictions", _predictions(draws, test_data, thin)),
        ("More pictures", figures_of(figures)),
        ("Settings", settings({k: json.dumps(v, default=str) for k, v in draws.attrs.items()})),
        ("Environment", settings(environment())),
    ]
    return write_page(path, title, sections)


def _charts(charts: list[Chart]) -> str:
    shown = "".join(chart.svg() for chart in charts)
    return f'<div class="charts">{shown}</div>' if shown else ""


def _convergence(draws: DrawSet, inputs: Any) -> str:
    chains, count, size = draws.particles.shape
    charts = []
    if "potential" in draws.stats and count > 1:
        values = draws.stats["potential"].double().expand(chains, count)
        charts.append(_traces("Potential", "U, in nats", values))
    if draws.interacting or count < 4:
        return _charts(charts)
    of: View = "parameters" if size <= _MOST_PARAMETERS else "projections"
    of = "predictions" if inputs is not None else of
    sizes = convergence.ess(draws, of, inputs=inputs).reshape(-1)
    charts.append(_sorted(f"Effective sample sizes of {of}", "ESS", sizes, 400.0))
    if chains > 1:
        scales = convergence.rhat(draws, of, inputs=inputs).reshape(-1)
        charts.append(_sorted(f"R-hat of {of}", "R-hat", scales, 1.01))
    if of == "parameters":
        worst = np.argsort(np.nan_to_num(sizes, nan=np.inf))[:_SHOWN]
        names = _names(draws)
        for k in worst:
            values = draws.particles[..., int(k)].double()
            charts.append(_traces(f"{names[int(k)]}, of ESS {sizes[k]:.0f}", "value", values))
    return _charts(charts)


def _names(draws: DrawSet) -> list[str]:
    size = draws.particles.shape[-1]
    every = draws.potential.layout.coordinate_names() if draws.potential is not None else []
    if draws.coordinates is not None and every:
        every = [every[k] for k in draws.coordinates.tolist()]
    return every if len(every) == size else [f"coordinate {k}" for k in range(size)]


def _traces(title: str, what: str, values: Tensor) -> Chart:
    """One line per chain of ``[P, T]``, of eight chains at most."""
    numbers = range(values.shape[1])
    lines = [Line(f"chain {k}", numbers, row.tolist()) for k, row in enumerate(values[:8])]
    return Chart(title, "draw", what, lines)


def _sorted(title: str, what: str, values: np.ndarray[Any, Any], reference: float) -> Chart:
    found = np.sort(values[np.isfinite(values)])
    shares = (np.arange(len(found)) + 0.5) / max(len(found), 1)
    return Chart(
        title,
        "share below",
        what,
        [Line(what, shares.tolist(), found.tolist())],
        reference=reference,
    )


def _temperatures(draws: DrawSet, data: Any, thin: int) -> str:
    model = draws.potential
    found: dict[str, temperatures.Temperature] = {}
    if not draws.interacting and "kinetic_temperature" in draws.stats:
        found |= temperatures.kinetic(draws)
    evaluable = model is not None and draws.complete and (data is not None or not model.num_data)
    if not draws.interacting and evaluable and draws.particles.shape[1]:
        found |= {
            "configurational" if name == "all" else name: value
            for name, value in temperatures.configurational(draws, data, thin=thin).items()
        }
    rows = [
        Interval(name, each.mean, each.mean - 2 * each.mcse, each.mean + 2 * each.mcse)
        for name, each in list(found.items())[: 2 * _MOST_TENSORS]
    ]
    target = float(temperatures.temperature_set(draws).double().mean())
    title = f"Temperatures with two standard errors, set to {target:g}"
    return _charts([Chart(title, "temperature", intervals=rows, reference=target)]) if rows else ""


def _predictions(draws: DrawSet, test_data: Any, thin: int) -> str:
    if test_data is None:
        return ""
    model = draws.model()
    if model.likelihood is None:
        return ""
    *inputs, given = as_data(test_data, model, complete=False, name="test_data").whole().data
    targets = plain_targets(given, "The page of test_data").cpu()
    asked = tuple(inputs) if len(inputs) > 1 else inputs[0]
    levels = tuple(np.linspace(0.05, 0.95, 19))
    ends = () if model.likelihood.classes or model.likelihood.binary else levels
    prediction = predict(draws, asked, quantiles=ends, thin=thin)
    rows, charts = of_predictions(draws, test_data, prediction, targets, levels, thin)
    table = _html.table(("score", "value", "error"), rows)
    return _html.block("Scores on held-out data", table) + _charts(charts)
