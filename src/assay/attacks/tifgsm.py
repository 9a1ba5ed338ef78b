"""The translation-invariant iterative fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.attacks.mifgsm import MIFGSM
from assay.runtime.errors import InputError


def gaussian_kernel(size: int, sigma: float) -> Float[Tensor, " size"]:
    """Weights of a Gaussian at the distances -(size - 1) / 2 ... (size - 1) / 2, summing to 1, float64."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.softmax(-(place**2) / (2 * sigma**2), 0)


def smooth(grad: Float[Tensor, "n c h w"], kernel: int, sigma: float) -> Float[Tensor, "n c h w"]:
    """Images smoothed by a Gaussian kernel of ``kernel`` x ``kernel`` pixels, with zeros around them."""
    if grad.dim() != 4:
        raise InputError(f"smoothing: a sample has shape {tuple(grad.shape[1:])}; expected an image (c, h, w)")
    line = gaussian_kernel(kernel, sigma).to(grad)
    channels, half = grad.shape[1], kernel // 2
    rows = F.conv2d(grad, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(half, 0), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, half), groups=channels)


@dataclass(frozen=True, kw_only=True)
class TIFGSM(MIFGSM):
    """Gradients smoothed by a Gaussian kernel (Dong et al., 2019, arXiv:1904.02884, eq. 7 to 9).

    That is the mean gradient of the shifted images, weighted by the kernel. ``kernel`` is its odd side and ``sigma``
    its width, both in pixels (the paper: 15 and 7 / 3, for images of 299 pixels). ``momentum=1`` is TI-MI-FGSM. x is
    images (n, c, h, w). Ranges and errors: see Attack; options: see MIFGSM.
    """

    momentum: float = 0.0
    kernel: int = 15
    sigma: float = 7 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0 or not self.sigma > 0:
            self.refuse("kernel, sigma", (self.kernel, self.sigma), "an odd number of pixels, and a width above 0")

    def shape(self, grad: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return smooth(grad, self.kernel, self.sigma)
