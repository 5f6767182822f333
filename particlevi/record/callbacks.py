"""Recorders for training loops that Lightning or Hugging Face's Trainer runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from particlevi.record.recorder import Recorder

__all__ = ["lightning_callback", "trainer_callback"]


def lightning_callback(
    part: Callable[[nn.Module], nn.Module] = lambda module: module, **options: Any
) -> Any:
    """A Lightning callback that records the training: ``Trainer(callbacks=[callback])``.

    ``callback.recorder`` is the recorder once the training has begun. Needs ``lightning`` or
    ``pytorch_lightning``.

    Args:
        part: from the LightningModule to the module in it whose potential is meant, such as
            ``lambda module: module.net``.
        options: of the ``Recorder``; ``loss`` is a function of that module and a batch here.

    Raises:
        ImportError: Lightning is not installed.
        ValueError: at the start of the training, several optimisers.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback  # type: ignore[assignment,unused-ignore]
        except ImportError as error:
            raise ImportError(
                "lightning_callback needs Lightning: pip install particlevi[lightning]."
            ) from error

    class RecorderCallback(Callback):  # type: ignore[misc,unused-ignore]
        """Attaches a recorder when the training starts and detaches it at its end."""

        recorder: Recorder | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """The optimiser is there now."""
            if len(trainer.optimizers) != 1:
                raise ValueError(
                    f"One optimiser can be recorded, the module has {len(trainer.optimizers)}: "
                    "make a Recorder for each in on_train_start."
                )
            self.recorder = _attached(part(pl_module), trainer.optimizers[0], options)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            """No more steps."""
            assert self.recorder is not None
            self.recorder.close()

    return RecorderCallback()


def trainer_callback(**options: Any) -> Any:
    """A callback of Hugging Face's Trainer that records the training: ``callbacks=[callback]``.

    ``callback.recorder`` is the recorder once the training has begun. Needs ``transformers``.

    Args:
        options: of the ``Recorder``; ``loss`` is a function of the model and a batch here, and if
            only ``probe``, a dict of the model's arguments with labels, is given, the loss is
            ``model(**probe).loss``.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            "trainer_callback needs transformers: pip install particlevi[transformers]."
        ) from error
    if options.get("probe") is not None:
        options.setdefault("loss", lambda model, batch: model(**batch).loss)

    class RecorderCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Attaches a recorder when the training starts and detaches it at its end."""

        recorder: Recorder | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The optimiser is there now; Accelerate wraps it."""
            wrapped = kwargs["optimizer"]
            optimizer = getattr(wrapped, "optimizer", wrapped)
            self.recorder = _attached(kwargs["model"], optimizer, options)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """No more steps."""
            assert self.recorder is not None
            self.recorder.close()

    return RecorderCallback()


def _attached(module: nn.Module, optimizer: Any, options: dict[str, Any]) -> Recorder:
    loss = options.get("loss")
    if loss is None:
        return Recorder(module, optimizer, **options)
    bound = {**options, "loss": lambda batch: loss(module, batch)}
    return Recorder(module, optimizer, **bound)
