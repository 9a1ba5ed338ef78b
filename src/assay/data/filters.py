"""Filters of images that keep what they show: parts of corruptions, and of defences that transform their input."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

Bounds = tuple[float, float]


def _images(where: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected images (n, c, h, w)")


def quantised(x: Float[Tensor, "n ..."], levels: float, bounds: Bounds = (0.0, 1.0)) -> Float[Tensor, "n ..."]:
    """``x`` rounded to ``levels`` values spread over its range; 2^b of them are a depth of b bits."""
    if levels < 2:
        raise InputError(f"quantised: levels={levels}; expected at least 2")
    low, high = bounds
    return ((x - low) / (high - low) * (levels - 1)).round() / (levels - 1) * (high - low) + low


def median(x: Float[Tensor, "n c h w"], size: int = 3) -> Float[Tensor, "n c h w"]:
    """The median over windows of ``size`` x ``size`` pixels, the border repeated (Xu et al., 2018, arXiv:1704.01155).

    An even window lies up and left of its pixel; of an even number of values the lower middle one counts.
    """
    _images("median", x)
    if size < 1:
        raise InputError(f"median: size={size}; expected at least 1")
    before, after = size // 2, (size - 1) // 2
    padded = F.pad(x, (before, after, before, after), mode="replicate")
    return padded.unfold(2, size, 1).unfold(3, size, 1).flatten(4).median(4).values


def convolved(x: Float[Tensor, "n c h w"], kernel: Float[Tensor, "kh kw"]) -> Float[Tensor, "n c h w"]:
    """Every channel filtered by ``kernel``; the border is repeated."""
    kh, kw = kernel.shape
    channels = x.shape[1]
    padded = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2), mode="replicate")
    return F.conv2d(padded, kernel.to(x).expand(channels, 1, kh, kw), groups=channels)


def gaussian_blur(x: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
    """``x`` under a Gaussian of ``sigma`` pixels, integrated over each pixel (so that it may be small)."""
    _images("gaussian_blur", x)
    if not sigma > 0:
        raise InputError(f"gaussian_blur: sigma={sigma}; expected above 0")
    radius = max(1, math.ceil(3 * sigma))
    edges = torch.arange(-radius, radius + 2, dtype=torch.float64) - 0.5
    mass = torch.special.ndtr(edges / sigma).diff()
    mass = mass / mass.sum()
    return convolved(convolved(x, mass[None, :]), mass[:, None])


def jpeg(x: Float[Tensor, "n c h w"], quality: int, bounds: Bounds = (0.0, 1.0)) -> Float[Tensor, "n c h w"]:
    """``x`` as baseline JPEG of ``quality`` 1 to 95 and back; three channels are coded in colour, others one by one."""
    from PIL import Image

    _images("jpeg", x)
    if not 1 <= quality <= 95:
        raise InputError(f"jpeg: quality={quality}; expected 1 to 95")
    low, high = bounds
    planes = ((x.detach().cpu() - low) / (high - low) * 255).round().clamp(0, 255).byte()
    colour = x.shape[1] == 3
    pictures = planes.permute(0, 2, 3, 1).numpy() if colour else planes.flatten(0, 1).numpy()
    out = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(buffer)))
    back = torch.from_numpy(np.stack(out)).to(x) / 255
    back = back.permute(0, 3, 1, 2).contiguous() if colour else back.reshape(x.shape)
    return back * (high - low) + low
