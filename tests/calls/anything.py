"""Numbers and tensors of any kind."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

NAN, INF = math.nan, math.inf

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, -1, 0.5, NAN, INF, -0.0, 1e-320, 1e300, 10**400, True, None, "1"]),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.int16, st.integers(-100, 100)),
    st.builds(torch.tensor, st.floats(width=32)),
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
     torch.bool, torch.complex64]
)  # fmt: skip


@st.composite
def tensors(draw, shapes=SHAPES):
    """A small tensor of any shape, dtype and values, as torch's or numpy's."""
    shape, dtype = draw(shapes), draw(DTYPES)
    values = 3 * torch.randn(
        shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 3)))
    )
    if draw(st.integers(0, 9)) == 0:
        values = values.masked_fill(values > 2, draw(st.sampled_from([NAN, INF, -INF])))
    if dtype in (torch.int64, torch.uint8, torch.bool):
        values = values.nan_to_num(0, 0, 0).abs()
    values = values.to(dtype)
    return values.numpy() if dtype != torch.bfloat16 and draw(st.booleans()) else values
