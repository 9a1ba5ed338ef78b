"""Number formats of accelerators, simulated: float32 values are rounded to those that the format has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Rounding = Callable[[Tensor], Tensor]
BLOCK = 32


def _exponent(x: Tensor) -> Tensor:
    """floor(log2 |x|), int32; -1 where x is 0."""
    return torch.frexp(x).exponent - 1


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, exact: the exponent's bits of a float32."""
    return ((exponent + 127) << 23).view(torch.float32)


def minifloat(x: Float[Tensor, "*s"], exponent: int, mantissa: int, top: float) -> Float[Tensor, "*s"]:
    """The nearest number with that many bits, ties to even, subnormal numbers kept; beyond ``top`` it saturates."""
    least = 2 - 2 ** (exponent - 1)
    step = _power(_exponent(x).clamp_min(least) - mantissa)
    return ((x / step).round() * step).clamp(-top, top)


def fp8_e4m3(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """8-bit floats with 4 exponent bits, up to 448 (Micikevicius et al., 2022, arXiv:2209.05433)."""
    return minifloat(x, 4, 3, 448.0)


def fp8_e3m4(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """8-bit floats with 3 exponent bits, up to 15.5 (the highest exponent is for infinities and NaN)."""
    return minifloat(x, 3, 4, 15.5)


def mxint8(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Blocks of 32 of a row's values share a power of two; each value is k 2^(e - 6) with |k| <= 127 (OCP MX, 2023)."""
    rows = x.flatten(1)
    blocks = F.pad(rows, (0, -rows.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    top = blocks.abs().amax(2, keepdim=True)
    step = _power(_exponent(top).clamp_min(-120) - 6)
    rounded = (blocks / step).round().clamp(-127, 127) * step
    return rounded.flatten(1)[:, : rows.shape[1]].reshape(x.shape)


def int8_affine(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """256 levels from the least to the largest value of each row: (q - zero) scale with q in 0..255."""
    rows = x.flatten(1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = torch.where(high > low, high - low, 1.0) / 255
    zero = (-low / scale).round()
    level = ((rows / scale).round() + zero).clamp(0, 255)
    return ((level - zero) * scale).reshape(x.shape)
