"""The checks that read the code instead of running it, so that one pytest command covers all."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

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


USER = """
import torch
from torch import Tensor, nn

import particlevi as pvi


class Bowl:
    num_params = 2
    num_data = None

    def __call__(self, particles: Tensor, batch: pvi.typing.Batch | None = None) -> Tensor:
        return 0.5 * particles.square().sum(1)


x, y = torch.randn(50, 2), torch.randn(50, 1)
model = pvi.from_module(nn.Linear(2, 1), pvi.Gaussian(0.1), pvi.Normal(1.0), num_data=50)
sampler = pvi.sghmc(model, friction=2.0)
draws = pvi.sample(sampler, (x, y), step_size=1e-3, batch_size=10, num_draws=50)
reveal_type(model)
reveal_type(pvi.sample(Bowl()))
reveal_type(pvi.resume("folder", sampler, (x, y)))
reveal_type(pvi.load("file", model))
reveal_type([sampler, pvi.svgd(model, pvi.kernels.imq()), pvi.mclmc(Bowl())])
reveal_type(pvi.suggest_step_size(model, (x, y), batch_size=10).momentum)
reveal_type(draws.particles)
reveal_type(draws[:, 10:])
reveal_type(draws.diagnose((x, y)))
reveal_type(draws.temperatures((x, y)))
reveal_type(draws.predict(x))
reveal_type(draws.outputs(x))
reveal_type(pvi.compare({"a": draws, "b": draws}, reference="a", data=(x, y)))
reveal_type(pvi.check_collapse(draws, (x, y)))
reveal_type(pvi.curvature.largest_curvature(Bowl(), x))
reveal_type(pvi.sgdvi.exact_law(x, x, learning_rate=0.1, batch_size=1))
reveal_type(pvi.noise.measure(model, (x, y)))
reveal_type(pvi.optim.PNM(model.init(1)))
"""


def test_a_users_type_checker_sees_no_any(tmp_path: Path) -> None:
    """Beside what numpy, torch and tqdm leave open, every result of the main road has a type."""
    script = tmp_path / "user.py"
    script.write_text(USER)
    found = run(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(script))
    revealed = [line.split('"')[1] for line in found.splitlines() if "Revealed type" in line]
    assert len(revealed) == USER.count("reveal_type")
    assert [kind for kind in revealed if "Any" in kind] == []


def test_readme_and_ci_have_the_same_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    command = script.strip().splitlines()[-1]
    assert "-m pytest" in command
    assert f"```bash\n{command}\n```" in readme


def test_import_is_lazy() -> None:
    code = "import sys, particlevi; print(*sys.modules)"
    assert not HEAVY & set(run(sys.executable, "-c", code).split())
