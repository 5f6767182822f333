"""Record a training loop of your own: iterates, gradient noise, curvature, temperature.

A recorder hangs on the hooks of a ``torch.optim`` optimiser. It changes nothing in the training.
"""

from particlevi.record.callbacks import lightning_callback, trainer_callback
from particlevi.record.iterates import Iterates
from particlevi.record.probes import Noise, edge_of_stability, gradient_noise, top_curvature
from particlevi.record.recorder import Recorder, Status

__all__ = [
    "Iterates",
    "Noise",
    "Recorder",
    "Status",
    "edge_of_stability",
    "gradient_noise",
    "lightning_callback",
    "top_curvature",
    "trainer_callback",
]
