"""Modules in the mode in which a datum's likelihood is a function of its own weights and inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from particlevi._checks import check_choice

__all__ = ["set_batch_norm", "set_dropout", "set_plain_paths"]


def set_dropout(module: nn.Module, dropout: str | None) -> None:
    """Dropout layers on or off, as the caller said.

    Raises:
        ValueError: there are some and the caller did not say.
    """

    def rate(layer: nn.Module) -> float:
        value = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0.0)
        return float(value) if isinstance(value, (int, float)) else 0.0

    layers = {name: layer for name, layer in module.named_modules() if rate(layer) > 0}
    if dropout is not None:
        check_choice("dropout", dropout, ["off", "sample"])
    elif layers:
        raise ValueError(
            f"The module has dropout in {list(layers)}; say what to do with it: dropout='off' "
            "samples the posterior of the net without dropout, dropout='sample' keeps the masks."
        )
    if dropout == "sample":
        for layer in layers.values():
            layer.training = True


def set_batch_norm(module: nn.Module, batch_norm: str) -> None:
    """Normalisation by running statistics or by those of the batch, as the caller said.

    Raises:
        ValueError: running statistics are asked for, and there are none.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, _NormBase) or not layer.track_running_stats:
            continue
        if batch_norm == "batch":
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        elif _untouched(layer):
            raise ValueError(
                f"The batch normalisation {name!r} has no running statistics yet: run the module "
                "on data in training mode first (with torch.no_grad(): module.train()(x)), or "
                "pass batch_norm='batch' to normalise with the statistics of each batch, or use "
                "nn.GroupNorm or nn.LayerNorm."
            )


def _untouched(layer: _NormBase) -> bool:
    """Whether the running statistics are those of a fresh layer; not all kinds count batches."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None and variance is not None
    return not bool(mean.any()) and bool((variance == 1).all())


_WITH_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def set_plain_paths(module: nn.Module) -> None:
    """Fused attention and sparse gradients off: the same values, in operations that lift.

    Attention layers take a fused kernel in evaluation mode that knows neither ``vmap`` nor
    gradients. In training mode they do not, and without dropout the two modes are the same.
    Recurrent layers write into the states that they start from: where ``vmap`` lifts the inputs, it
    has to lift these too.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            layer.register_forward_pre_hook(_with_states, with_kwargs=True)
        if isinstance(layer, _WITH_FAST_PATH):
            if isinstance(layer, nn.MultiheadAttention) and not layer.training:
                layer.dropout = 0.0
            layer.training = True
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            layer.sparse = False


def _with_states(
    layer: nn.RNNBase | nn.RNNCellBase, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A recurrent layer's arguments with the zeros that it starts from, made from its inputs."""
    inputs, *states = (*args, *kwargs.values())
    given = [each for each in states if each is not None]
    if given or not isinstance(inputs, Tensor) or inputs.ndim > 3:
        return None
    hidden = layer.hidden_size
    if isinstance(layer, nn.RNNCellBase):
        first = second = inputs.new_zeros(*inputs.shape[:-1], hidden)
    else:
        count = layer.num_layers * (2 if layer.bidirectional else 1)
        batch = [] if inputs.ndim < 3 else [inputs.shape[0 if layer.batch_first else 1]]
        first = inputs.new_zeros(count, *batch, layer.proj_size or hidden)
        second = inputs.new_zeros(count, *batch, hidden)
    pair = isinstance(layer, (nn.LSTM, nn.LSTMCell))
    return (inputs, (first, second) if pair else first), {}
