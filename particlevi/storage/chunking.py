"""How an array of draws is cut into chunks, and where a run of its numbers lies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["BUFFER_BYTES", "block_length", "boxes", "chunk_shape", "is_large"]

BUFFER_BYTES = 2**26
"""Of draws that wait for their chunk to be full."""

_SMALLEST, _LARGEST, _TARGET = 2**22, 2**24, 2**23


def block_length(draw_bytes: int, num_draws: int) -> int:
    """How many draws share a chunk: as many as the buffer holds, at least one.

    Args:
        draw_bytes: of one draw of all particles.
        num_draws: T.

    >>> block_length(8 * 10_000_000 * 4, 100), block_length(4 * 100 * 4, 1000)
    (1, 1000)
    """
    return max(1, min(num_draws, BUFFER_BYTES // max(1, draw_bytes)))


def is_large(draw_bytes: int) -> bool:
    """Whether a draw of all particles is more than the buffer holds two of.

    >>> is_large(8 * 10_000_000 * 4), is_large(4 * 100 * 4)
    (True, False)
    """
    return 2 * draw_bytes > BUFFER_BYTES


def chunk_shape(
    num_particles: int, block: int, shape: Sequence[int], itemsize: int
) -> tuple[int, ...]:
    """The chunks of an array ``[P, T, *shape]``.

    One chain if that makes 4 MB, more of them if not, and a part of the numbers of one where that
    makes more than 16 MB.

    Args:
        num_particles: P.
        block: draws in a chunk.
        shape: of the tensor.
        itemsize: bytes of a number.

    >>> chunk_shape(8, 1, (10_000_000,), 4)
    (1, 1, 2000000)
    >>> chunk_shape(8, 10, (300, 100), 4)
    (4, 10, 300, 100)
    """
    one = block * math.prod(shape) * itemsize
    if one <= _LARGEST:
        chains = max(1, min(num_particles, -(-_SMALLEST // max(1, one))))
        return _even(num_particles, chains), block, *map(_at_least_one, shape)
    sizes, most = [], max(1, _TARGET // (block * itemsize))
    for axis, size in enumerate(shape):
        inner = math.prod(shape[axis + 1 :])
        sizes.append(_even(size, max(1, min(size, most // inner))))
    return 1, block, *sizes


def _at_least_one(size: int) -> int:
    return max(1, size)


def _even(size: int, most: int) -> int:
    """The length of pieces of about one length, none longer than ``most``.

    >>> _even(10, 4), _even(12, 4), _even(13, 4), _even(3, 4)
    (4, 4, 4, 3)
    >>> _even(9, 8)
    5
    """
    return max(1, -(-size // -(-size // most))) if size else 1


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """The numbers ``start`` to ``stop`` of a flat tensor as boxes of it, in their order.

    >>> list(boxes((3, 4), 2, 9))
    [(slice(0, 1, None), slice(2, 4, None)), (slice(1, 2, None), slice(0, 4, None)),
     (slice(2, 3, None), slice(0, 1, None))]
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield (slice(start, stop),) if shape else ()
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:
        yield from _inside(shape, last, start - last * inner, stop - last * inner)
        return
    if start < first * inner:
        yield from _inside(shape, first - 1, start - (first - 1) * inner, inner)
    if first < last:
        yield (slice(first, last), *(slice(0, size) for size in shape[1:]))
    if last * inner < stop:
        yield from _inside(shape, last, 0, stop - last * inner)


def _inside(shape: Sequence[int], row: int, start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    for box in boxes(shape[1:], start, stop):
        yield (slice(row, row + 1), *box)
