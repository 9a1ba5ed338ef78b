"""How near rendered patches come to photographs of printed ones."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from assay.runtime.errors import InputError


def realism_error(
    rendered: Float[Tensor, "n 3 h w"], photo: Float[Tensor, "n 3 h w"], mask: Bool[Tensor, "n 1 h w"]
) -> Float[Tensor, " n"]:
    """Mean absolute difference of pixels under ``mask``, over channels: the realism test of Hingun et al. (2022,
    arXiv:2212.05680), by which methods of relighting are compared. InputError for shapes that differ and
    an empty mask."""
    if rendered.shape != photo.shape or mask.shape != (len(photo), 1, *photo.shape[2:]):
        shapes = f"{tuple(rendered.shape)}, {tuple(photo.shape)}, mask {tuple(mask.shape)}"
        raise InputError(f"realism_error: {shapes}; expected equal images and a mask (n, 1, h, w)")
    inside = mask.expand_as(photo)
    if not mask.flatten(1).any(1).all():
        raise InputError("realism_error: an empty mask; expected the patch's pixels")
    return ((rendered - photo).abs() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)
