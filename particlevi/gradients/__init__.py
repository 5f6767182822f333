"""How the gradient of a potential is estimated."""

from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.history import history
from particlevi.gradients.minibatch import minibatch
from particlevi.gradients.structured import structured, structured_dropout

__all__ = ["control_variate", "history", "minibatch", "structured", "structured_dropout"]
