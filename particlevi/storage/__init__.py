"""Draws in memory and on disk, and checkpoints."""

from particlevi.storage.checkpoint import Checkpoint
from particlevi.storage.ondisk import OnDisk
from particlevi.storage.store import InMemory, Part, Recording, Storage, Store

__all__ = ["Checkpoint", "InMemory", "OnDisk", "Part", "Recording", "Storage", "Store"]
