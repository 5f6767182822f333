"""Optimisers of the SGD-noise literature, for any torch loop."""

__all__: list[str] = []
