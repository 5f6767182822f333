"""A page by itself: style and pictures are inside, and it reads on a phone and on paper."""

from __future__ import annotations

import base64
import io
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from particlevi import _html

__all__ = ["Section", "environment", "figures_of", "write_page"]

Section = tuple[str, str]
"""A heading and its content as HTML."""

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1b1f;--paper:#fff;--faint:#8883;--link:#0b57d0}
@media(prefers-color-scheme:dark){:root{--ink:#e6e1e5;--paper:#1c1b1f;--link:#a8c7fa}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;
max-width:62rem;padding:1rem}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.15rem;margin:1.6em 0 .5em}
nav{display:flex;flex-wrap:wrap;gap:0 1em}nav a{color:var(--link)}
.when{opacity:.7;font-size:.9rem}
.particlevi{max-width:100%!important;margin:.6em 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0;border:1px solid var(--faint);border-radius:6px;padding:.5rem;break-inside:avoid}
figcaption{font-size:.9rem;font-weight:600}figure img{max-width:100%;height:auto;background:#fff}
svg{width:100%;height:auto;font-size:12px}svg text{fill:currentColor}svg .label{opacity:.75}
polyline{fill:none;stroke-width:1.3}.grid{stroke:var(--faint);fill:none}
.dashed{stroke:currentColor;stroke-dasharray:4 4;opacity:.6}
.keys{font-size:.8rem;display:flex;flex-wrap:wrap;gap:0 1em}.key::before{content:"\\25CF ";}
.c0{stroke:#0072b2}circle.c0{fill:#0072b2}.key.c0::before{color:#0072b2}
.c1{stroke:#d55e00}circle.c1{fill:#d55e00}.key.c1::before{color:#d55e00}
.c2{stroke:#009e73}circle.c2{fill:#009e73}.key.c2::before{color:#009e73}
.c3{stroke:#cc79a7}circle.c3{fill:#cc79a7}.key.c3::before{color:#cc79a7}
.c4{stroke:#e69f00}circle.c4{fill:#e69f00}.key.c4::before{color:#e69f00}
.c5{stroke:#56b4e9}circle.c5{fill:#56b4e9}.key.c5::before{color:#56b4e9}
.c6{stroke:#7f7f00}circle.c6{fill:#7f7f00}.key.c6::before{color:#7f7f00}
.c7{stroke:#888}circle.c7{fill:#888}.key.c7::before{color:#888}
.wide{overflow-x:auto}pre{white-space:pre-wrap!important}
@media print{nav{display:none}body{max-width:none;font-size:11pt}details{display:block}}
"""


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """One HTML file of sections that are not empty, with links to them at its head.

    Args:
        path: of the file.
        title: of the page.
        sections: headings with their content.
    """
    kept = [(heading, content) for heading, content in sections if content]
    links = "".join(f'<a href="#s{k}">{escape(head)}</a>' for k, (head, _) in enumerate(kept))
    body = "".join(
        f'<section id="s{k}"><h2>{escape(head)}</h2><div class="wide">{content}</div></section>'
        for k, (head, content) in enumerate(kept)
    )
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}"
        f'</h1><div class="when">{when}</div><nav>{links}</nav>{body}</body></html>'
    )
    target = Path(path)
    target.write_text(text, encoding="utf-8")
    return target


def figures_of(figures: Mapping[str, Any] | None) -> str:
    """Pictures of matplotlib by title, as PNG inside the page.

    Raises:
        TypeError: something else than figures or axes.
    """
    parts = []
    for title, each in (figures or {}).items():
        figure = each if hasattr(each, "savefig") else getattr(each, "figure", None)
        if not hasattr(figure, "savefig"):
            raise TypeError(
                f"figures must be matplotlib figures or axes by title, {title!r} is "
                f"{type(each).__name__}."
            )
        assert figure is not None
        held = io.BytesIO()
        figure.savefig(held, format="png", dpi=110)
        coded = base64.b64encode(held.getvalue()).decode()
        image = f'<img alt="{escape(title)}" src="data:image/png;base64,{coded}">'
        parts.append(f"<figure><figcaption>{escape(title)}</figcaption>{image}</figure>")
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def environment() -> dict[str, str]:
    """Versions of what a result depends on, for a report and for an issue."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    names = ("numpy", "scipy", "arviz", "pyro-ppl", "zarr", "matplotlib", "scikit-learn")
    return {
        "particlevi": of("particlevi"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        **{name: of(name) for name in names},
        "system": platform.platform(),
        "processor": platform.machine(),
        "threads of torch": str(torch.get_num_threads()),
        "CUDA device": device,
    }


def settings(values: Mapping[str, object]) -> str:
    """Names and values, folded away."""
    return _html.details("show", _html.pairs(values))
