"""The checks that read the code instead of running it, so that one pytest command covers all."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from inspect import ismodule
from pathlib import Path
from types import FunctionType

import pytest

import particlevi

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
HEAVY = {"arviz", "matplotlib", "pyro", "sklearn"}


def run(*command: str) -> str:
    """The output of a command run at the root of the project; its failure is the test's."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "-m", "ruff", "check", "."], id="ruff-check"),
        pytest.param([sys.executable, "-m", "ruff", "format", "--check", "."], id="ruff-format"),
        pytest.param([sys.executable, "-m", "mypy"], id="mypy"),
        pytest.param([str(SCRIPTS / "lint-imports")], id="import-linter"),
    ],
)
def test_tool(command: list[str]) -> None:
    run(*command)


def test_readme_and_ci_have_the_same_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    command = script.strip().splitlines()[-1]
    assert command.endswith("-m pytest")
    assert f"```bash\n{command}\n```" in readme


def test_import_is_lazy() -> None:
    code = "import sys, particlevi; print(*sys.modules)"
    assert not HEAVY & set(run(sys.executable, "-c", code).split())


def test_public_names_are_documented() -> None:
    # A dataclass or NamedTuple without a docstring is given its signature for one.
    values = [particlevi]
    values += [room for name in particlevi.__all__ if ismodule(room := getattr(particlevi, name))]
    missing = [
        f"{room.__name__}.{name}"
        for room in values
        for name in room.__all__
        if isinstance(value := getattr(room, name), type | FunctionType)
        and (not value.__doc__ or value.__doc__.startswith(f"{name}("))
    ]
    assert missing == []
