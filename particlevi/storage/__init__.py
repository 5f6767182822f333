"""Draws in memory and on disk, and checkpoints."""

from particlevi.storage.checkpoint import Checkpoint
from particlevi.storage.store import InMemory, Part, Storage, Store

__all__ = ["Checkpoint", "InMemory", "Part", "Storage", "Store"]
