"""Data as every part of the package takes them, and how minibatches are drawn."""

from particlevi.data.batches import Batching, BatchSource, Law
from particlevi.data.data import Data, DataLike
from particlevi.data.minibatches import Minibatches
from particlevi.data.pairs import as_pairs
from particlevi.data.placing import Place, Placed, as_particles, place
from particlevi.data.reading import as_data

__all__ = [
    "BatchSource",
    "Batching",
    "Data",
    "DataLike",
    "Law",
    "Minibatches",
    "Place",
    "Placed",
    "as_data",
    "as_pairs",
    "as_particles",
    "place",
]
