"""Images and small nets of the studies."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["conv_net", "images", "residual_net"]

FILES = {"Fashion-MNIST": "fashion_mnist.npz", "CIFAR-10": "cifar10/cifar10_subset.npz"}


def images(task: str, folder: str | None, most: int | None = None) -> tuple[Tensor, ...]:
    """Train images ``[N, C, H, W]``, standardised by channel, labels, and the same for testing."""
    where = Path(folder or os.environ.get("PARTICLEVI_DATA", "../shared/data")) / FILES[task]
    with np.load(where) as raw:
        arrays = {key: raw[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    parts = []
    for part in ("x_train", "x_test"):
        x = torch.tensor(arrays[part][: most if part == "x_train" else None]).float() / 255
        parts.append(x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous())
    mean = parts[0].mean((0, 2, 3), keepdim=True)
    std = parts[0].std((0, 2, 3), keepdim=True)
    x_train, x_test = ((x - mean) / std for x in parts)
    y_train, y_test = (torch.tensor(arrays[key]).long() for key in ("y_train", "y_test"))
    return x_train, y_train[:most], x_test, y_test


class Residual(nn.Module):
    """Two convolutions beside the identity, with group normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(4, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(4, outputs),
        )
        plain = inputs == outputs and stride == 1
        self.skip = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class Average(nn.Module):
    """The mean over pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def residual_net(channels: int, width: int) -> nn.Module:
    """Three residual blocks behind a first layer of stride 2, without buffers."""
    blocks: list[nn.Module] = [nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU()]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        blocks.append(Residual(inputs, outputs, 1 + (stage > 0)))
        inputs = outputs
    return nn.Sequential(*blocks, Average(), nn.Linear(inputs, 10))


def conv_net(task: str) -> nn.Module:
    """Two convolutions of stride 2: 11 330 weights on Fashion-MNIST, more on CIFAR-10."""
    channels, first, second, size = (1, 10, 10, 4) if task == "Fashion-MNIST" else (3, 16, 32, 5)
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, 2),
        nn.ReLU(),
        nn.Conv2d(first, second, 5, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * size**2, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )
