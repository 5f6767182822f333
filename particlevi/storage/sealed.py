"""Safetensors files with a digest of themselves, so that a changed bit is found when they are read.

The digest (BLAKE2b, 32 bytes) stands in the file's own metadata and is that of the file with zeros
in its place. The number of the format stands beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

__all__ = ["FORMAT", "read", "remove_left_over", "write"]

FORMAT = 2
"""Of the files written here. 1 had no digests."""

_KEY, _FORMAT_KEY = "particlevi_digest", "particlevi_format"
_BLANK = b"0" * 64
_FIELD = f'"{_KEY}":"'.encode()
_BLOCK = 2**20
_SUFFIX = ".particlevi-tmp"


def write(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write one file atomically: after a crash there is the old file or the new one.

    Args:
        path: of the file.
        tensors: by name.
        text: what else there is to know.
    """
    from safetensors.torch import save

    payload = _apart({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    known = {"particlevi": text, _KEY: _BLANK.decode(), _FORMAT_KEY: str(FORMAT)}
    content = memoryview(save(payload, known))
    header_end = 8 + int.from_bytes(content[:8], "little")
    place = bytes(content[:header_end]).index(_FIELD + _BLANK) + len(_FIELD)
    digest = hashlib.blake2b(content, digest_size=32).hexdigest().encode()
    temporary = path.with_name(f".{path.name}-{uuid4().hex[:8]}{_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            for piece in (content[:place], digest, content[place + len(digest) :]):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, no two in one storage, which safetensors refuses."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return found


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors and text of one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind or format, or one that is not as it was written.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    known = _verified(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged: {error}") from error
    return tensors, known["particlevi"]


def remove_left_over(folder: Path) -> None:
    """Files that a killed process had begun to write in a folder."""
    for path in folder.glob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def _verified(path: Path) -> dict[str, str]:
    """The metadata of a file whose digest is right."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise ValueError(f"{path} is no safetensors file, or it is damaged: it is cut short.")
        header = file.read(length)
        known = _metadata(header, path)
        _check_format(known, path)
        field = header.find(_FIELD)
        place = field + len(_FIELD)
        blank = header[:place] + _BLANK + header[place + len(_BLANK) :]
        digest = hashlib.blake2b(start, digest_size=32)
        digest.update(blank)
        while block := file.read(_BLOCK):
            digest.update(block)
    if field < 0 or digest.hexdigest() != known[_KEY]:
        raise ValueError(
            f"{path} is damaged: its digest is not the one it was written with. Take a copy that "
            "is whole, or run anew."
        )
    return known


def _metadata(header: bytes, path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged: {error}") from error
    known = content.get("__metadata__") if isinstance(content, dict) else None
    if not isinstance(known, dict) or "particlevi" not in known:
        raise ValueError(f"{path} was not written by particlevi, or it is damaged.")
    return known


def _check_format(known: Mapping[str, str], path: Path) -> None:
    given = known.get(_FORMAT_KEY, "1 (without digests)")
    if given != str(FORMAT) or _KEY not in known:
        raise ValueError(
            f"{path} has format {given}, and this version of particlevi reads format {FORMAT}: "
            "read it with the version that wrote it. (Or the file is damaged.)"
        )
