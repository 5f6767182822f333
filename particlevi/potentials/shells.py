"""Modules that threads do not share."""

from __future__ import annotations

import copy
import threading

from torch import nn

__all__ = ["Shells"]


class Shells:
    """Copies of a module, one per thread, that share its tensors.

    ``functional_call`` puts a particle's weights in the place of the module's while it runs. Two
    threads in one module would see each other's weights; a shell is a module of its own whose
    parameters and buffers are the tensors of the original, so that it costs next to nothing.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._of_thread = threading.local()

    def here(self) -> nn.Module:
        """The copy of this thread."""
        shell: nn.Module | None = getattr(self._of_thread, "shell", None)
        if shell is None:
            shell = shell_of(self._module)
            self._of_thread.shell = shell
        return shell


def shell_of(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
