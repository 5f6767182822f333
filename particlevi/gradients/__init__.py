"""How the gradient of a potential is estimated."""

from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.history import history
from particlevi.gradients.minibatch import minibatch
from particlevi.gradients.msgd import NoiseClass, msgd
from particlevi.gradients.structured import structured, structured_dropout

__all__ = [
    "NoiseClass",
    "control_variate",
    "history",
    "minibatch",
    "msgd",
    "structured",
    "structured_dropout",
]
