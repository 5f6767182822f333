"""How the gradient of a potential is estimated."""
