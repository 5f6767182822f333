"""The cells of every tutorial run, with small sizes in place of those of its own."""

from __future__ import annotations

import linecache
import re
import sys
import types
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("docs/tutorials/[!_]*.md"))
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"^:(\w+): *(.*)\n")

SMALL = {"num_particles": 4, "num_warmup": 60, "num_draws": 20}
QUICK: dict[str, dict[str, object]] = {
    "start": {**SMALL, "num_particles": 8},
    "regression": {**SMALL, "point_steps": 50},
    "images": {**SMALL, "epochs": 2, "compiled": False},
    "eight_schools": {**SMALL, "num_particles": 8, "careful_warmup": 60},
    "sgd_and_posterior": {**SMALL, "num_particles": 8, "num_steps": 200},
    "what_sgd_minimises": {
        "num_chains": 8,
        "num_warmup": 300,
        "num_draws": 60,
        "num_centers": 3,
    },
    "structured": {"num_warmup": 60, "num_draws": 20, "thin": 2, "compiled": False},
    "collapse": {
        "num_particles": 8,
        "num_steps": 60,
        "num_draws": 10,
        "thin": 2,
        "compiled": False,
        "num_warmup": 60,
        "chain_draws": 20,
    },
    "gradient_noise": {
        "num_steps": 50,
        "num_batches": 100,
        "num_directions": 3,
        "num_null": 19,
    },
    "processes": {"num_draws": 20},
    "own_sampler": {**SMALL, "thin": 1, "reference_draws": 20, "compile_check": False},
}


def cells(text: str) -> list[tuple[int, str, str]]:
    """The line number, options and code of each cell."""
    found = []
    for cell in CELL.finditer(text):
        body, options = cell["body"], ""
        while option := OPTION.match(body):
            options, body = options + option[0], body[option.end() :]
        start = cell.end("body") - len(body)
        found.append((text.count("\n", 0, start), options, body))
    return found


def run(page: Path, sizes: dict[str, object], namespace: dict) -> None:
    """Execute the cells of a page, with ``sizes`` after its parameters."""
    for line, options, code in cells(page.read_text()):
        name, source = f"{page}, line {line}", "\n" * line + code
        # torch.compile and dataclasses read the source of what a cell defines.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), namespace)
        if "parameters" in options:
            assert set(sizes) <= set(re.findall(r"^(\w+) =", code, re.MULTILINE)), page.name
            namespace.update(sizes)


def test_cells_are_found_with_their_lines_and_options():
    text = (
        "a\n```{code-cell}\n:tags: [parameters]\n\nN = 1\n```\n"
        "```python\nx\n```\n```{code-cell}\ny\n```\n"
    )
    assert cells(text) == [(3, ":tags: [parameters]\n", "\nN = 1\n"), (10, "", "y\n")]


def test_every_tutorial_has_its_small_sizes():
    pages = {page.stem for page in PAGES if cells(page.read_text())}
    assert pages == set(QUICK)


@pytest.mark.filterwarnings("ignore::particlevi.ParticleviWarning")  # runs far too short
@pytest.mark.filterwarnings("ignore:Chains diverged:UserWarning")
@pytest.mark.parametrize("name", sorted(QUICK))
def test_tutorial(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    torch.manual_seed(0)
    pyro.clear_param_store()
    module = types.ModuleType(f"tutorial_{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with monkeypatch.context() as context:
        context.setattr(warnings, "formatwarning", warnings.formatwarning)
        run(ROOT / "docs" / "tutorials" / f"{name}.md", QUICK[name], module.__dict__)
    plt.close("all")
