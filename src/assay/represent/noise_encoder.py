"""Encoders that are told how noisy their input is."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable

FREQUENCIES = 32  # of the embedded time, where a network has no width of its own for it


def embedded_time(t: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n dim"]:
    """Cosines and sines of t at ``dim`` / 2 geometric frequencies from 1 to 1/10000; ``dim`` is even."""
    ramp = torch.arange(dim // 2, device=t.device, dtype=t.dtype) / (dim // 2)
    angles = t[:, None] * torch.exp(-math.log(1e4) * ramp)
    return torch.cat((angles.cos(), angles.sin()), 1)


@rebuildable
class NoiseConditionedEncoder(nn.Module):
    """``encoder(x, sigma) -> (n, d)`` = net(c_in x, 250 log sigma), c_in = 1 / sqrt(sigma^2 + ``sigma_data``^2).

    Lei et al., 2025, arXiv:2501.13094, with the input scaling of Karras et al., 2022, arXiv:2206.00364, table 1. ``x``
    (n, ...) is data in [-1, 1] plus noise of deviation ``sigma`` (n,) > 0. ``net`` maps (x, time (n,)) to (n, d); it
    should normalise each sample by itself: batch norm would let noise levels leak into one another.
    """

    def __init__(self, net: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        if not 0 < sigma_data < math.inf:
            raise InputError(f"NoiseConditionedEncoder: sigma_data={sigma_data}; expected a finite number > 0")
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x: Float[Tensor, "n ..."], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Representations. Raises InputError unless there is one sigma > 0 a sample."""
        if sigma.shape != (len(x),) or not (sigma > 0).all():
            raise InputError(f"NoiseConditionedEncoder: sigma {tuple(sigma.shape)}; expected ({len(x)},) above 0")
        scale = (sigma.square() + self.sigma_data**2).rsqrt().to(x.dtype)
        return self.net(scale.reshape(-1, *[1] * (x.dim() - 1)) * x, 250 * sigma.log().to(x.dtype))


@rebuildable
class FiLMConvNet(nn.Module):
    """Strided 3x3 convolutions, each scaled and shifted by the embedded time, and a linear layer with layer norm."""

    def __init__(self, shape: tuple[int, int, int] = (1, 28, 28), widths: tuple[int, ...] = (16, 32), dim: int = 128):
        super().__init__()
        channels, height, width = shape
        self.blocks = nn.ModuleList()
        for w in widths:
            self.blocks.append(_FiLMBlock(channels, w))
            channels, height, width = w, -(-height // 2), -(-width // 2)
        self.last = nn.Linear(channels * height * width, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        time = embedded_time(t, 2 * FREQUENCIES)
        for block in self.blocks:
            x = block(x, time)
        return self.norm(self.last(x.flatten(1)))


class _FiLMBlock(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 2, 1)
        self.norm = nn.GroupNorm(1, width)
        self.film = nn.Linear(2 * FREQUENCIES, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.film(time)[:, :, None, None].chunk(2, 1)
        return torch.relu(self.norm(self.conv(x)) * (1 + scale) + shift)


class _Patches(nn.Conv2d):
    """Non-overlapping patches as tokens (n, l, d)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


@rebuildable
class SmallViT(nn.Module):
    """The parts of a small vision transformer, named as timm names them; ``TimmTimeToken`` runs them.

    ``patch`` divides the sides of ``shape``; ``heads`` divides ``dim``.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 28, 28),
        patch: int = 7,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.embed_dim = dim
        self.patch_embed = _Patches(shape[0], dim, patch, patch)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + shape[1] // patch * (shape[2] // patch), dim))
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(dim, heads, 4 * dim, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)


@rebuildable
class TimmTimeToken(nn.Module):
    """A vision transformer with a token for the time: ``net(x (n, c, h, w), time (n,)) -> (n, d)``, its class token.

    ``vit`` has what timm's VisionTransformer has: patch_embed, cls_token, pos_embed (1, 1 + l, d), blocks, norm and
    embed_dim. The time token, sines and cosines of the time, stands after the class token (Lei et al., 2025,
    arXiv:2501.13094), with a position of its own that starts at 0. Raises InputError where a part is missing.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        missing = [n for n in ("patch_embed", "cls_token", "pos_embed", "blocks", "norm") if not hasattr(vit, n)]
        if missing:
            raise InputError(f"TimmTimeToken: {type(vit).__name__} has no {missing[0]}; expected a timm transformer")
        self.vit = vit
        self.place = nn.Parameter(torch.zeros(1, 1, int(vit.embed_dim)))  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "n c h w"], t: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        vit: Any = self.vit
        patches = vit.patch_embed(x) + vit.pos_embed[:, 1:]
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        time = embedded_time(t, self.place.shape[-1])[:, None].to(patches.dtype) + self.place
        tokens = torch.cat((first, time, patches), 1)
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens[:, 0])
