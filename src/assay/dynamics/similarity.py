"""Structural similarity of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError


def structural_similarity(
    x: Float[Tensor, "n ch h w"],
    y: Float[Tensor, "n ch h w"],
    *,
    data_range: float = 1.0,
    window: int = 11,
    sigma: float = 1.5,
) -> Float[Tensor, " n"]:
    """SSIM (Wang et al., 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13).

    Mean over all places where a Gaussian ``window`` of deviation ``sigma`` pixels lies inside, and over channels; 1 for
    equal images, in [-1, 1]. K1 = 0.01, K2 = 0.03. Raises InputError for shapes that differ and images smaller than the
    window, which is odd.
    """
    check_inputs("structural_similarity", x)
    check_inputs("structural_similarity", y)
    if x.shape != y.shape or x.dim() != 4:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise InputError(f"structural_similarity: shapes {shapes}; expected the same (n, ch, h, w)")
    if window < 1 or window % 2 == 0 or min(x.shape[2:]) < window or not (sigma > 0 and 0 < data_range < math.inf):
        given = f"window={window}, sigma={sigma}, data_range={data_range} for {tuple(x.shape[2:])} pixels"
        raise InputError(
            f"structural_similarity: {given}; expected an odd window within the image, the others finite, > 0"
        )
    offset = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    weight = (-(offset**2) / (2 * sigma**2)).exp()
    kernel = torch.outer(weight, weight)[None, None] / weight.sum() ** 2

    def local(z: Tensor) -> Tensor:
        return F.conv2d(z.flatten(0, 1)[:, None], kernel)

    mx, my = local(x), local(y)
    vx, vy, cov = local(x * x) - mx * mx, local(y * y) - my * my, local(x * y) - mx * my
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ssim = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return ssim.flatten(1).mean(1).view(x.shape[:2]).mean(1)
