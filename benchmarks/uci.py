"""The regressor on the standard splits of the UCI regression sets, nothing chosen but its seconds.

``BayesianMLPRegressor`` with one hidden layer of 50 units, else its defaults; mean and standard
error over splits of the test RMSE and log density, in the units of the data, the share of test
targets in intervals of 90 %, and how many runs said that they had not reached the posterior. Parts
run apart: each split is a line of JSON in the record, and one that is there is not made again.

    python -m benchmarks.uci [--data bostonHousing concrete] [--seconds 20] [--splits 20]
        --record out/uci.jsonl [--page docs/howto/tabular.md]
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._page import markdown, write
from particlevi.sklearn import BayesianMLPRegressor

FOLDER = Path(os.environ.get("PARTICLEVI_DATA", "../shared/data")) / "uci_regression"
SETS = ["bostonHousing", "concrete", "wine-quality-red"]


def fitted(name: str, split: int, seconds: float) -> dict[str, Any]:
    """Scores of one split."""
    with np.load(FOLDER / f"{name}.npz") as file:
        x, y = file["x"].astype(float), file["y"].astype(float)
        train, test = file["train_idx"][split], file["test_idx"][split]
    net = BayesianMLPRegressor((50,), max_seconds=seconds, random_state=split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.fit(x[train], y[train])
    low, high = net.predict_interval(x[test], 0.9).T
    return {
        "set": name,
        "split": split,
        "seconds": seconds,
        "rmse": float(np.sqrt(np.mean((net.predict(x[test]) - y[test]) ** 2))),
        "log_density": float(net.log_density(x[test], y[test]).mean()),
        "inside": float(((y[test] >= low) & (y[test] <= high)).mean()),
        "says": [f.kind for f in net.verdict_.findings if f.severity in ("wrong", "uncertain")],
    }


def cell(values: list[float]) -> str:
    """Mean and standard error over splits."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    """Fit what the record lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=SETS)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    made = []
    if arguments.record.exists():
        made = [json.loads(line) for line in arguments.record.read_text().splitlines()]
    made = [each for each in made if each["seconds"] == arguments.seconds]
    done = {(each["set"], each["split"]) for each in made}
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    for split in range(arguments.splits):
        for name in arguments.data:
            if (name, split) in done:
                continue
            made.append(fitted(name, split, arguments.seconds))
            with arguments.record.open("a") as file:
                file.write(json.dumps(made[-1]) + "\n")
    rows = []
    for name in arguments.data:
        found = [each for each in made if each["set"] == name]
        rows.append(
            [
                name,
                str(len(found)),
                cell([each["rmse"] for each in found]),
                cell([each["log_density"] for each in found]),
                f"{100 * np.mean([each['inside'] for each in found]):.0f}",
                str(sum(bool(each["says"]) for each in found)),
            ]
        )
    heads = ["data", "splits", "test RMSE", "log density", "in 90 %", "not reached, and said so"]
    print(markdown(heads, rows))
    if arguments.page is not None:
        write(arguments.page, {"uci": markdown(heads, rows)})


if __name__ == "__main__":
    main()
