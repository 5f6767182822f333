"""A set of draws as data, on which every diagnostic works."""

from particlevi.drawset.data import DrawSet, Index, Kind, check_draws

__all__ = ["DrawSet", "Index", "Kind", "check_draws"]
