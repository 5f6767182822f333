"""Data as every part of the package takes them, and how minibatches are drawn."""

from particlevi.data.batching import Batching, Law

__all__ = ["Batching", "Law"]
