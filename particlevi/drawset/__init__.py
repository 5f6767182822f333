"""A set of draws as data, on which every diagnostic works."""

from particlevi.drawset.data import DrawSet, Index, Kind

__all__ = ["DrawSet", "Index", "Kind"]
