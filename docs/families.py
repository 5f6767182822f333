"""The public names by family: one page of the API each.

The build of the site fails when a public name is in none of them, or has no docstring.
"""

from __future__ import annotations

from inspect import ismodule
from pathlib import Path
from types import FunctionType, ModuleType

import particlevi as pvi

__all__ = ["FAMILIES", "ROOMS", "names", "undocumented", "write_pages"]

FAMILIES: dict[str, tuple[str, list[str]]] = {
    "potentials": (
        "Potentials",
        ["from_module", "from_pyro", "from_log_density", "from_log_likelihood"],
    ),
    "likelihoods": (
        "Likelihoods and priors",
        [
            "Gaussian",
            "MeanScaleGaussian",
            "StudentT",
            "Bernoulli",
            "Categorical",
            "Ordinal",
            "Poisson",
            "NegativeBinomial",
            "Normal",
            "Laplace",
            "Flat",
            "Hierarchical",
            "Horseshoe",
            "Correlated",
        ],
    ),
    "langevin": (
        "Langevin and Hamiltonian samplers",
        [
            "sgld",
            "psgld",
            "sghmc",
            "psghmc",
            "baoab",
            "obabo",
            "leimkuhler_matthews",
            "sgnht",
            "hmc",
            "randomized_hmc",
            "mclmc",
            "mams",
            "parallel_tempering",
            "sgd",
            "optimizer",
        ],
    ),
    "stein": (
        "Stein samplers",
        ["svgd", "message_passing_svgd", "repulsive_langevin", "nvgd", "check_collapse"],
    ),
    "run": (
        "Sampling",
        ["sample", "resume", "load", "outputs_at", "suggest_step_size", "Draws", "compare"],
    ),
    "errors": (
        "Errors and warnings",
        ["ParticleviError", "ParticleviWarning", "DivergenceError"],
    ),
}

ROOMS = {
    "running": "Running: rules that end a run",
    "data": "Data",
    "storage": "Storage",
    "schedules": "Schedules",
    "kernels": "Kernels",
    "gradients": "Gradient estimators",
    "samplers": "Parts of a sampler",
    "testing": "Checks for parts of one's own",
    "diagnostics": "Diagnostics",
    "tuning": "Tuning",
    "comparison": "Comparison",
    "noise": "Gradient noise",
    "curvature": "Curvature",
    "sgdvi": "SGD as variational inference",
    "optim": "Optimisers",
    "record": "Recording a training loop",
    "plots": "Pictures",
    "sklearn": "Estimators of scikit-learn",
    "typing": "The concepts as types",
}


def names() -> set[str]:
    """Every name that has a place on a page."""
    rooms = {name for room in ROOMS for name in getattr(pvi, room).__all__}
    return {name for _, family in FAMILIES.values() for name in family} | set(ROOMS) | rooms


def undocumented() -> list[str]:
    """Public names that have no page, or no docstring."""
    found = {f"particlevi.{name}": getattr(pvi, name, None) for name in pvi.__all__}
    homeless = {f"particlevi.{name}" for name in set(pvi.__all__) - names()}
    for room in ROOMS:
        members = getattr(pvi, room)
        found |= {f"particlevi.{room}.{name}": getattr(members, name) for name in members.__all__}
    return sorted(homeless | {name for name, value in found.items() if not _says_what(value)})


def _says_what(value: object) -> bool:
    if not isinstance(value, type | FunctionType | ModuleType):
        return True
    # A dataclass or NamedTuple without a docstring is given its signature for one.
    return bool(value.__doc__) and not value.__doc__.startswith(f"{value.__name__}(")


def write_pages(folder: Path) -> None:
    """One Markdown page per family and room, and their index."""
    folder.mkdir(exist_ok=True)
    for key, (title, family) in FAMILIES.items():
        entries = "\n".join(_entry(f"particlevi.{name}", getattr(pvi, name)) for name in family)
        (folder / f"{key}.md").write_text(f"# {title}\n\n```{{eval-rst}}\n{entries}```\n")
    for key, title in ROOMS.items():
        room = getattr(pvi, key)
        assert ismodule(room)
        entries = "\n".join(
            _entry(f"particlevi.{key}.{name}", getattr(room, name)) for name in room.__all__
        )
        text = (room.__doc__ or "").strip()
        block = f"\n```{{eval-rst}}\n{entries}```\n" if entries else ""
        (folder / f"{key}.md").write_text(f"# {title}: `particlevi.{key}`\n\n{text}\n{block}")
    pages = "\n".join([*FAMILIES, *ROOMS])
    index = f"# API\n\n```{{toctree}}\n:maxdepth: 1\n\n{pages}\n```\n"
    (folder / "index.md").write_text(index)


def _entry(path: str, value: object) -> str:
    if isinstance(value, type):
        # scikit-learn makes these, with links into its own documentation.
        left_out = ", ".join(f"set_{name}_request" for name in ("fit", "predict", "score"))
        return f".. autoclass:: {path}\n   :members:\n   :exclude-members: {left_out}\n"
    if callable(value):
        return f".. autofunction:: {path}\n"
    return f".. autodata:: {path}\n"
