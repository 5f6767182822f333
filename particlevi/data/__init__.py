"""Data as every part of the package takes them, and how minibatches are drawn."""
