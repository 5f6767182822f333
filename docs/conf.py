"""How Sphinx builds the site: ``sphinx-build -W docs site``.

``PARTICLEVI_DOCS_EXECUTE=1`` in the environment runs the tutorials; else they show code alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import families
from sphinx.errors import ExtensionError

import particlevi

project = "particlevi"
author = "the particlevi developers"
copyright = f"2026, {author}"
release = version = particlevi.__version__

extensions = [
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
intersphinx_mapping: dict[str, tuple[str, None]] = {}
exclude_patterns = ["_static", "figures"]
source_suffix = {".md": "myst-nb"}

html_theme = "furo"
html_title = f"particlevi {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# `<!-- not run: ... -->` lines and links into the repository's code stay as they are.
myst_fence_as_directive = ["mermaid"]

# Outputs are kept in the folder below, and run again when the code of a page changes.
nb_execution_mode = "cache" if os.environ.get("PARTICLEVI_DOCS_EXECUTE") == "1" else "off"
nb_execution_cache_path = str(Path(__file__).parents[1] / "out" / "tutorials")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Write one page of the API per family before the sources are read."""
    missing = families.undocumented()
    if missing:
        raise ExtensionError(
            f"Public names without a docstring, or without a page in docs/families.py: {missing}."
        )
    families.write_pages(Path(__file__).parent / "api")
