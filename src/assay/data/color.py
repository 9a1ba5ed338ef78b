"""RGB to luminance and chrominance and back: the YCbCr of JPEG, differentiable."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError

CHANNELS = ("Y", "Cb", "Cr")
CENTRE = 128 / 255  # the offset of Cb and Cr in an 8-bit image, as a share of its range
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_CB, _CR = 2 * (1 - _BLUE), 2 * (1 - _RED)  # Cb = (B - Y) / 1.772 and Cr = (R - Y) / 1.402
FORWARD = (
    (_RED, _GREEN, _BLUE),
    (-_RED / _CB, -_GREEN / _CB, 0.5),
    (0.5, -_GREEN / _CR, -_BLUE / _CR),
)
BACKWARD = (
    (1.0, 0.0, _CR),
    (1.0, -_CB * _BLUE / _GREEN, -_CR * _RED / _GREEN),
    (1.0, _CB, 0.0),
)


def check_color(where: str, x: Tensor) -> None:
    """Finite floating-point images of three channels (n, 3, h, w), n >= 1; else InputError."""
    check_inputs(where, x)
    if x.dim() != 4 or x.shape[1] != 3:
        raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected color images (n, 3, h, w)")


def _mix(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("ij,njhw->nihw", torch.tensor(matrix, dtype=x.dtype, device=x.device), x)


def _centre(like: Tensor) -> Tensor:
    return torch.tensor((0.0, CENTRE, CENTRE), dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def rgb_to_ycbcr(
    x: Float[Tensor, "n 3 h w"], centered: bool = True, quantize: bool = False
) -> Float[Tensor, "n 3 h w"]:
    """Y = 0.299 R + 0.587 G + 0.114 B, Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402 (ITU-R BT.601, full range as JPEG).

    x in [0, 1]. ``centered``: Cb and Cr are around 0 and the map is linear, so that it may be taken of differences of
    images too; otherwise they are around 128/255, as in a file. ``quantize`` cuts to whole 8-bit levels, as the code
    of Pestana et al. (2020, arXiv:2003.00883) does; that has no gradient. InputError unless x is (n, 3, h, w), finite.
    """
    check_color("rgb_to_ycbcr", x)
    ycbcr = _mix(x, FORWARD)
    if quantize:
        ycbcr = (255 * (ycbcr + _centre(x)) + 1e-3).trunc() / 255 - _centre(x)
    return ycbcr if centered else ycbcr + _centre(x)


def ycbcr_to_rgb(ycbcr: Float[Tensor, "n 3 h w"], centered: bool = True) -> Float[Tensor, "n 3 h w"]:
    """The inverse of ``rgb_to_ycbcr`` without quantization: R = Y + 1.402 Cr, B = Y + 1.772 Cb, G from Y.

    Nothing is clipped: not every triple is a color. Y goes into R, G and B alike. InputError as there.
    """
    check_color("ycbcr_to_rgb", ycbcr)
    return _mix(ycbcr if centered else ycbcr - _centre(ycbcr), BACKWARD)
