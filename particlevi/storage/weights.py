"""Weights of a module from checkpoint files, whose code is never run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["checkpoint_files", "read_weights"]

_SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}
_OTHERS = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
_NESTS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")


def checkpoint_files(source: str | Path | Iterable[str | Path], pattern: str = "*") -> list[Path]:
    """Checkpoints in their order: of a folder and the folders in it, or as they are listed.

    Numbers in names count as numbers, so that ``step9.pt`` comes before ``step10.pt``. States of
    optimisers and the like, which stand beside them, are passed over by name.

    Args:
        source: a folder, a file or a list of files.
        pattern: of the names that count, as in a shell.

    Raises:
        FileNotFoundError: no such folder or file, or none in it.
    """
    if not isinstance(source, (str, Path)):
        return [path for each in source for path in checkpoint_files(each)]
    root = Path(source)
    if root.is_file():
        return [root]
    found = [
        path
        for path in (root.rglob("*") if root.is_dir() else ())
        if path.suffix in _SUFFIXES
        and fnmatchcase(path.name, pattern)
        and not path.name.startswith(_OTHERS)
    ]
    if not found:
        raise FileNotFoundError(
            f"There is no checkpoint in {root}: looked for files {pattern!r} ending in "
            f"{', '.join(sorted(_SUFFIXES))}."
        )
    return sorted(found, key=lambda path: _natural(str(path)))


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in a checkpoint by name, on the CPU.

    Files of torch are read with ``weights_only=True``. Weights that lie in the file under
    ``state_dict``, ``model_state_dict`` or ``model`` are found, and the prefixes of
    ``DistributedDataParallel`` and ``torch.compile`` are taken off.

    Args:
        path: a ``.safetensors`` file, or one by ``torch.save``.
        prefix: what stands before the names of the module's own tensors, such as ``"net."``; other
            tensors are left out.

    Raises:
        ValueError: a file that holds no tensors by name, or other objects.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found: Any = load_file(path)
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{path} is not read, because it holds more than weights or is damaged: save "
                f"module.state_dict(). ({type(error).__name__})"
            ) from error
    for name in _NESTS:
        inner = found.get(name) if isinstance(found, Mapping) else None
        found = inner if isinstance(inner, Mapping) else found
    named = {} if not isinstance(found, Mapping) else found
    tensors = {str(k): v.detach() for k, v in named.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name: save module.state_dict().")
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name)]
