"""ResNets for small images without batch normalisation, whose statistics leave no posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FilterResponseNorm", "ResNet"]


class FilterResponseNorm(nn.Module):
    """``y = gamma x / sqrt(mean_hw(x^2) + eps) + beta``, per image and channel.

    Source: Singh and Krishnan, "Filter response normalization layer", 2020, without its threshold.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        squares = x.square().mean((-2, -1), keepdim=True)
        return self.weight * (x * torch.rsqrt(squares + self.eps)) + self.bias


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    return FilterResponseNorm(channels)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outside)
        changes = stride != 1 or inside != outside
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(functional.silu(self.norm1(self.conv1(x)))))
        return functional.silu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """A ResNet of ``6 depth + 2`` layers with Swish: ResNet-20 for ``depth=3``.

    Args:
        depth: blocks per stage.
        width: channels of the first stage; the next two have twice and four times as many.
        channels: of the images.
        norm: ``"frn"``, filter response normalisation, or ``"group"``.
        num_classes: outputs.
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 16,
        channels: int = 3,
        norm: str = "frn",
        num_classes: int = 10,
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = _norm(norm, width)
        blocks: list[nn.Module] = []
        inside = width
        for stage in range(3):
            for number in range(depth):
                outside = width * 2**stage
                stride = 2 if stage and not number else 1
                blocks.append(_Block(inside, outside, stride, norm))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inside, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.silu(self.norm(self.conv(x))))
        return self.head(x.mean((-2, -1)))
