"""How many small changes of the code live through the tests.

A random sample of places in the rooms given is changed, one at a time: an operator, a comparison, a
number, a condition. The fast tests that belong to the file run on each change, in a copy of the
tree, its examples among them, and a change that they all let pass is listed.

    python benchmarks/mutations.py --num 120 --seed 0 --write FILE
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import arviz  # noqa: F401  what tests import is imported once, before the children are made
import pyro  # noqa: F401
import pytest

ROOT = Path(__file__).resolve().parents[1]
OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.USub: ast.UAdd,
    ast.Not: ast.UAdd,
}
TESTS = {
    "samplers": [
        "tests/samplers",
        "tests/stationarity",
        "tests/test_equivalences.py",
        "tests/running/test_memory.py",
        "tests/diagnostics/test_views.py",
    ],
    "gradients": ["tests/gradients", "tests/samplers/test_online_noise.py"],
    "kernels": ["tests/kernels", "tests/samplers/test_requirements.py"],
    "storage": ["tests/storage", "tests/drawset", "tests/running/test_sampling.py"],
    "running": [
        "tests/running",
        "tests/tuning/test_automatic.py",
        "tests/test_streams.py",
        "tests/contract/test_substitutions.py",
    ],
}
STEP = ["tests/contract/test_step.py", "tests/contract/test_temperature.py"]
RESUME = ["tests/contract/test_resume.py", "-k", "sghmc"]
ANY = ["tests/test_values.py", "tests/test_defaults.py"]
SHARED = ("full", "halves", "history", "precision", "requirements")
CONTRACTS = {
    "kernels": [*STEP, "-k", "svgd or nvgd"],
    "storage": RESUME,
    "running": RESUME,
}


class Mutant(NamedTuple):
    """A place and what stands there instead."""

    file: Path
    line: int
    before: str
    after: str
    start: tuple[int, int]
    stop: tuple[int, int]


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPERATORS[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        ops = [OPERATORS[type(node.ops[0])](), *node.ops[1:]]
        yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value * 2 if node.value else 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)


def _left_alone(node: ast.AST) -> list[ast.AST]:
    """The annotations and decorators of a node."""
    found = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [each for each in found if each] + getattr(node, "decorator_list", [])


def mutants(file: Path) -> Iterator[Mutant]:
    """Every change of a file, but not of its texts and annotations.

    Nor of decorators: those with numbers or flags are ``dataclass``, whose flags
    ``tests/test_values.py`` holds for all files at once, and ``lru_cache``.
    """
    text = file.read_text()
    tree = ast.parse(text)
    skipped = {
        id(part) for node in ast.walk(tree) for top in _left_alone(node) for part in ast.walk(top)
    }
    for node in ast.walk(tree):
        if id(node) in skipped or not hasattr(node, "end_col_offset"):
            continue
        before = ast.get_source_segment(text, node) or ""
        for new in _changed(node):
            after = ast.unparse(ast.fix_missing_locations(new))
            start = (node.lineno, node.col_offset)
            stop = (node.end_lineno or 0, node.end_col_offset or 0)
            yield Mutant(file, node.lineno, before, f"({after})", start, stop)


def apply(mutant: Mutant, tree: Path) -> None:
    """Write the changed file into a copy of the tree."""
    lines = mutant.file.read_text().splitlines(keepends=True)
    (first, left), (last, right) = mutant.start, mutant.stop
    head = lines[first - 1].encode()[:left].decode()
    tail = lines[last - 1].encode()[right:].decode()
    lines[first - 1 : last] = [head + mutant.after + tail]
    (tree / mutant.file.relative_to(ROOT)).write_text("".join(lines))


def stages(mutant: Mutant) -> list[list[str]]:
    """Arguments of pytest: the file's examples and tests of its name, its room, the contract."""
    inside = mutant.file.relative_to(ROOT)
    room = inside.parts[1]
    stem = mutant.file.stem.strip("_")
    own = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob(f"test_{stem}*.py"))
    registered = not mutant.file.stem.startswith("_") and stem not in SHARED
    contract = CONTRACTS.get(room, [*STEP, "-k", stem if registered else "minibatch"])
    return [[str(inside), *own], ANY, TESTS[room], contract]


def verdict(mutant: Mutant, tree: Path, seconds: int) -> str:
    """Whether the tests pass on a change, in a child that has torch imported already."""
    apply(mutant, tree)
    child = os.fork()
    if not child:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        signal.alarm(seconds)
        options = ["-q", "-x", "-p", "no:cacheprovider"]
        codes = (pytest.main([*options, *paths]) for paths in stages(mutant))
        os._exit(int(any(code not in (0, 5) for code in codes)))
    _, status = os.waitpid(child, 0)
    shutil.copy(mutant.file, tree / mutant.file.relative_to(ROOT))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return "TIME "
    return "dies " if status else "LIVES"


def main() -> None:
    """Draw, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", nargs="+", default=list(TESTS))
    parser.add_argument("--num", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=300, help="for the tests of one change")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for all of them")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    files = [f for room in options.rooms for f in sorted((ROOT / "particlevi" / room).glob("*.py"))]
    every = [mutant for file in files for mutant in mutants(file)]
    chosen = random.Random(options.seed).sample(every, min(options.num, len(every)))
    began, survivors, tried = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "*cache*", "figures"))
        for mutant in chosen:
            if time.monotonic() - began > options.budget:
                break
            found = verdict(mutant, tree, options.seconds)
            tried, survivors = tried + (found != "TIME "), survivors + (found == "LIVES")
            where = f"{mutant.file.relative_to(ROOT)}:{mutant.line}"
            line = f"{found} {where}  {mutant.before}  ->  {mutant.after}"
            print(line, flush=True)
            if options.write:
                with options.write.open("a") as out:
                    out.write(line + "\n")
    print(f"{survivors} of {tried} live ({len(every)} places).")


if __name__ == "__main__":
    main()
