"""A Zarr v3 hierarchy on the local disk that grows draw by draw. The only file that imports zarr.

Arrays are made with room for all draws of the run, and chunks are files that are replaced whole.
How many draws there are is said in one place, the consolidated metadata of the root, which is one
file that is replaced whole: before that there are the draws of before, after it those of now, in
every array. xarray and ``zarr.open`` read that file first; what reads the metadata of each array
for itself finds room for all draws, and the fill value where there are none yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from particlevi.storage.chunking import chunk_shape
from particlevi.typing import JSON

__all__ = ["Hierarchy", "check_zarr"]

_ROOT = "zarr.json"
DRAW = "draw"
"""The dimension that grows."""


def check_zarr() -> ModuleType:
    """Zarr, of version 3.1 at least.

    Raises:
        ImportError: it is not installed, or too old.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            "Draws on disk need zarr 3.1 or later: pip install particlevi[zarr]."
        ) from error
    version = tuple(int(part) for part in zarr.__version__.split(".")[:2])
    if version < (3, 1):
        raise ImportError(
            f"Draws on disk need zarr 3.1 or later, got {zarr.__version__}: pip install "
            "particlevi[zarr]."
        )
    return zarr


class Hierarchy:
    """Groups of arrays in a folder.

    Args:
        path: of the folder.
        attributes: of the root; with them the hierarchy is made anew, without it is opened.

    Raises:
        FileNotFoundError: there is none to open.
        ValueError: what is there was not written by particlevi.
    """

    def __init__(self, path: Path, attributes: Mapping[str, JSON] | None = None):
        self.zarr: ModuleType = check_zarr()
        self.path = path
        self.nodes: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.attributes: dict[str, JSON] = dict(attributes or {})
        if attributes is None:
            self._open()
        else:
            self.zarr.create_group(path, zarr_format=3, attributes=self.attributes)
            self.commit()

    def _open(self) -> None:
        root = self.path / _ROOT
        if not root.is_file():
            raise FileNotFoundError(f"There are no draws in {self.path}: no file {root}.")
        try:
            document = json.loads(root.read_text())
            self.attributes = dict(document["attributes"])
            self.nodes = dict(document["consolidated_metadata"]["metadata"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{root} was not written by particlevi, or is damaged.") from error
        for name, node in list(self.nodes.items()):
            if node["node_type"] == "array" and DRAW in (dims := node["dimension_names"]):
                self.counts[name.split("/")[0]] = node["shape"][dims.index(DRAW)]
                self._note(name)

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return [name for name, node in self.nodes.items() if node["node_type"] == "group"]

    def names(self, group: str) -> list[str]:
        """Names of the arrays of a group."""
        inside = [name for name in self.nodes if name.startswith(f"{group}/")]
        return [name.removeprefix(f"{group}/") for name in inside]

    def dims(self, name: str) -> list[str]:
        """Of an array ``"group/name"``."""
        dims: list[str] = self.nodes[name]["dimension_names"]
        return dims

    def add(
        self,
        group: str,
        name: str,
        shape: Sequence[int],
        chunks: Sequence[int],
        dims: Sequence[str],
        dtype: npt.DTypeLike,
        *,
        squeeze: bool = False,
        attributes: Mapping[str, JSON] | None = None,
    ) -> Any:
        """An array of a group, of fill value nan or 0.

        Args:
            group: made if it is not there.
            name: of the array.
            shape: with room for all draws.
            chunks: a file each.
            dims: their names.
            dtype: of its numbers.
            squeeze: compress, as is worth it for numbers of which half the bytes are zero.
            attributes: of the array.
        """
        codecs = self.zarr.codecs
        packing = [codecs.BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")] if squeeze else []
        if group not in self.nodes:
            self.zarr.create_group(self.path / group, zarr_format=3)
            self._note(group)
        made = self.zarr.create_array(
            self.path / group,
            name=name,
            shape=tuple(shape),
            chunks=tuple(max(1, size) for size in chunks),
            dtype=np.dtype(dtype),
            compressors=(*packing, codecs.Crc32cCodec()),
            fill_value=np.nan if np.dtype(dtype).kind == "f" else None,
            dimension_names=tuple(dims),
            attributes=dict(attributes or {}),
            zarr_format=3,
        )
        self._note(f"{group}/{name}")
        return made

    def put(self, group: str, name: str, values: npt.NDArray[Any], dims: Sequence[str]) -> None:
        """An array as a whole."""
        if f"{group}/{name}" in self.nodes:
            array = self.array(group, name)
            if array.shape != values.shape:
                array.resize(values.shape)
                self._note(f"{group}/{name}")
            array[...] = values
            return
        chunks = values.shape
        if values.ndim > 1:
            rows, _, *inner = chunk_shape(len(values), 1, chunks[1:], values.itemsize)
            chunks = (rows, *inner)
        self.add(group, name, values.shape, chunks, dims, values.dtype)[...] = values

    def _note(self, name: str) -> None:
        self.nodes[name] = json.loads((self.path / name / _ROOT).read_text())

    def array(self, group: str, name: str) -> Any:
        """An array, with room for all draws."""
        return self.zarr.open_array(self.path / group / name, mode="r+")

    def make_room(self, group: str, name: str, room: int) -> None:
        """Room for so many draws in an array, more than before where a run is made longer."""
        array = self.array(group, name)
        axis = self.dims(f"{group}/{name}").index(DRAW)
        if array.shape[axis] < room:
            array.resize((*array.shape[:axis], room, *array.shape[axis + 1 :]))
            self._note(f"{group}/{name}")

    def reader(self, group: str, name: str) -> Any:
        """An array, to read from."""
        return self.zarr.open_array(self.path / group / name, mode="r")

    def commit(self) -> None:
        """Say how many draws there are in each group (``counts``), all at once."""
        shown = {}
        for name, node in sorted(self.nodes.items()):
            count = self.counts.get(name.split("/")[0])
            if node["node_type"] == "array" and count is not None:
                shape = [
                    count if dim == DRAW else size
                    for dim, size in zip(node["dimension_names"], node["shape"], strict=True)
                ]
                node = {**node, "shape": shape}  # noqa: PLW2901
            shown[name] = node
        document = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": self.attributes,
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": shown,
            },
        }
        temporary = self.path / f"zarr.{uuid4().hex}.partial"
        try:
            temporary.write_text(json.dumps(document))
            os.replace(temporary, self.path / _ROOT)
        finally:
            temporary.unlink(missing_ok=True)

    def remove_left_over(self) -> None:
        """Files that a killed process had begun to write."""
        for path in self.path.rglob("*.partial"):
            path.unlink(missing_ok=True)
