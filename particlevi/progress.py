"""The progress bar."""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():
    # A notebook without ipywidgets gets a bar of text, as it should.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(name: str, done: int, total: int, enabled: bool) -> tqdm[Any]:
    """A bar over steps."""
    return tqdm(
        total=total, initial=done, desc=name, unit="step", disable=not enabled, dynamic_ncols=True
    )
