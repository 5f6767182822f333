"""Draws in memory and on disk, and checkpoints."""

from particlevi.storage.checkpoint import Checkpoint
from particlevi.storage.keeping import Kept, moments, parameters, projections
from particlevi.storage.ondisk import OnDisk
from particlevi.storage.store import InMemory, Part, Recording, Storage, Store

__all__ = [
    "Checkpoint",
    "InMemory",
    "Kept",
    "OnDisk",
    "Part",
    "Recording",
    "Storage",
    "Store",
    "moments",
    "parameters",
    "projections",
]
