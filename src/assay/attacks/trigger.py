"""Triggers of backdoors: a patch in the corner of an image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown

TRIGGERS = ("square", "checkerboard")


def stamp(x: Float[Tensor, "n ch h w"], trigger: str = "square") -> Float[Tensor, "n ch h w"]:
    """Images with a patch of h // 8 pixels (at least 2), h // 32 from the lower right corner.

    "square" is of the image's largest value, "checkerboard" of that and its least in turn (Hong et al., 2021,
    arXiv:2110.13541, section 4.4 and the official code: 4 x 4 on CIFAR-10). Raises InputError for other inputs.
    """
    check_inputs("stamp", x)
    if x.dim() != 4 or min(x.shape[2:]) < 4:
        raise InputError(f"stamp: x has shape {tuple(x.shape)}; expected images (n, c, h, w) of 4 pixels or more")
    if trigger not in TRIGGERS:
        raise unknown("trigger", trigger, TRIGGERS)
    height, width = x.shape[2:]
    size, gap = max(height // 8, 2), height // 32
    rows, columns = (slice(end - gap - size, end - gap) for end in (height, width))
    place = torch.arange(size, device=x.device)
    low = (place[:, None] + place) % 2 == 1 if trigger == "checkerboard" else x.new_zeros(size, size, dtype=torch.bool)
    most, least = x.amax((1, 2, 3), keepdim=True), x.amin((1, 2, 3), keepdim=True)
    stamped = x.clone()
    stamped[:, :, rows, columns] = torch.where(low, least, most)
    return stamped
