"""What a float32 is made of: its 32 bits, or its sign, exponent and fraction."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from assay.runtime.errors import InputError

WIDTH, FRACTION = 32, 23


def _words(values: Tensor, who: str) -> Int[Tensor, "*s"]:
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{who}: the values are {found}; expected a float32 tensor, as the service gives them")
    return values.detach().contiguous().view(torch.int32)


def float_bits(values: Float[Tensor, "*s"]) -> UInt8[Tensor, "*s 32"]:
    """The IEEE-754 bits of float32 values of any shape, most significant (the sign) first, as 0 and 1.

    Every pattern has its own bits: -0, subnormal numbers, infinities and NaN too. What was computed in bfloat16 and
    cast up ends in 16 zeros; what was computed in float16 in 13, unless it is below 2^-14. Raises InputError for any
    other type: a cast would write the bits anew.
    """
    words = _words(values, "float_bits")
    shifts = torch.arange(WIDTH - 1, -1, -1, dtype=torch.int32, device=words.device)
    return (words[..., None] >> shifts).bitwise_and_(1).to(torch.uint8)


def split_float(values: Float[Tensor, "*s"]) -> tuple[Int[Tensor, "*s"], Int[Tensor, "*s"], Int[Tensor, "*s"]]:
    """Sign (0 or 1), biased exponent (0 to 255) and fraction (0 to 2^23 - 1) of float32 values, int32 each.

    A normal number is (-1)^sign 2^(exponent - 127) (1 + fraction / 2^23). Raises InputError as float_bits does.
    """
    words = _words(values, "split_float")
    return (words >> (WIDTH - 1)) & 1, (words >> FRACTION) & 0xFF, words & (2**FRACTION - 1)
