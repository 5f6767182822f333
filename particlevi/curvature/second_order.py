"""What second derivatives need of torch: operations that have them, and errors that say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["second_order"]

_MISSING = ("is not implemented", "forward AD with", "not support double backward")


@contextmanager
def second_order() -> Iterator[None]:
    """Plain operations in place of fused ones, which have first derivatives only.

    Attention, LSTM and GRU then have second derivatives, and derivatives in forward mode. The
    settings are torch's own, for the whole process, and are put back at the end.

    Raises:
        ValueError: an operation that has no second derivative all the same.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # Their context managers set the precision of other devices too, and warn where there is none.
    onednn = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)[0]
    cudnn = torch.backends.cudnn.set_flags(False, _fp32_precision=None)[0]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if any(words in str(error) for words in _MISSING):
            raise ValueError(
                "The model has an operation without a second derivative or without a derivative "
                f"in forward mode ({str(error).splitlines()[0]}): replace it by plain operations, "
                "or give what is asked for (a step_size, a Hessian) yourself."
            ) from error
        raise
    finally:
        torch.backends.mkldnn.set_flags(onednn, _fp32_precision=None)
        torch.backends.cudnn.set_flags(cudnn, _fp32_precision=None)
        torch.backends.mha.set_fastpath_enabled(fast)
