"""Right calls with one or two arguments replaced by anything, and what counts as an answer.

An error is ours if it says what is wrong: a ``raise`` of the package with a sentence. An error that
torch, numpy or the interpreter raises inside the package is obscure, whatever its type. An error
inside a function that the caller gave is the caller's.
"""

from __future__ import annotations

import linecache
import re
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import particlevi as pvi
from tests.calls import things
from tests.calls.anything import NUMBERS, tensors
from tests.calls.table import CALLS

PACKAGE = str(Path(pvi.__file__).parent)
CALLER = str(Path(things.__file__))
MISFIT = re.compile(r"(bowl|nothing|density|surprise|plate)\(\) (takes|missing)")

FITTING = st.sampled_from(
    [(2,), (2, 2), (3,), (12, 10, 2), (1, 2), (3, 3), (0, 2), (12, 2), (6,), (6, 1), (6, 2), (6, 3)]
)
SMALL = NUMBERS.filter(lambda n: type(n) is not int or n < 30 or n == 10**400)
OBJECTS = st.sampled_from([
    "auto", "epoch", "", "tensor", "normal", b"x", [], [1.0, 2.0], [None], {}, {"a": 1.0},
    (things.SERIES,), things.DATA, things.bowl, things.nothing, torch.tensor(1.0), things.MODEL,
    things.NORMAL, things.DRAWS, things.CHAINS, things.PARTICLES, things.NOISE, things.LAW,
    nn.Linear(2, 3), things.EYE.float(), things.SERIES.half(), things.SERIES.numpy(), 10**400,
    "cpu", torch.float16, object(), int, 1j, Ellipsis, torch.Generator(),
    np.ma.masked_array(np.zeros(6), np.zeros(6) > 1), torch.zeros(6, device="meta"),
])  # fmt: skip


ANYTHING = st.one_of(SMALL, tensors(), tensors(FITTING), OBJECTS)


@st.composite
def any_call(draw):
    """A name and the arguments that are replaced."""
    name = draw(st.sampled_from([name for name, free in FREE.items() if free]))
    names = draw(st.lists(st.sampled_from(FREE[name]), min_size=1, max_size=2, unique=True))
    return name, {each: draw(ANYTHING) for each in names}


FREE = {name: call.free() for name, call in CALLS.items()}


def obscure(error: BaseException) -> bool:
    """Whether nobody who gave a bad argument would know from it which, and why."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((k for k, f in enumerate(frames) if f.filename.startswith(PACKAGE)), None)
    if first is None:  # in what the test does with the answer
        return False
    inside = frames[first:]
    if any(frame.filename == CALLER for frame in inside) or MISFIT.match(str(error)):
        return False
    last = inside[-1]
    raised = linecache.getline(last.filename, last.lineno or 0).strip().startswith("raise")
    ours = last.filename.startswith(PACKAGE) and raised
    return not ours or len(str(error)) <= 20


def outcome(name, replaced):
    """``"answer"``, ``"error of ours"``, or a line about an obscure error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CALLS[name](**replaced)
    except Exception as error:
        if obscure(error):
            frames = [f for f in traceback.extract_tb(error.__traceback__) if PACKAGE in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            shown = ", ".join(replaced)
            return f"obscure: {name}({shown}) {type(error).__name__} {where} {str(error)[:90]}"
        return "error of ours"
    return "answer"
