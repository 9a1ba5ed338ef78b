"""A digital patch on real signs: relit as the sign is lit, and turned as the sign is turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.vision.geometry import GEOMETRIES, SOURCES, Geometry, corners, get_transform_matrix, warp
from assay.vision.relight import Relight, check_relight, fit_relight, relight


@dataclass(frozen=True, kw_only=True)
class PatchRenderer:
    """Puts patches on signs, differentiably in the patch (Hingun et al., 2022, arXiv:2212.05680).

    A sign has 4 key points in its image (3 where it is a triangle), those of ``source`` on the canonical sign (h, w;
    see ``corners``), and the light that ``fit`` finds. The patch is relit, cut out by its mask, moved by ``geometry``
    and laid over the image: (1 - a) I + warp(mask patch), with a = warp(mask). Colors are warped as they are cut out,
    so that edges blend without a seam; the authors' code multiplies by a once more, which darkens edges and is the
    same inside.
    Where patches of one image overlap their sums are clipped to 1.
    """

    kind: ClassVar[str] = "function"

    geometry: Geometry = "perspective"
    relight: Relight = "percentile"
    q: float = 0.2
    interp: Literal["bilinear", "nearest"] = "bilinear"
    source: str = "corners"

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            raise unknown("geometry", str(self.geometry), GEOMETRIES)
        check_relight(self.relight)
        if self.interp not in ("bilinear", "nearest"):
            raise unknown("interpolation", str(self.interp), ("bilinear", "nearest"))
        if self.source != "corners" and self.source not in SOURCES:
            raise unknown("source", self.source, ("corners", *SOURCES))
        if not 0 <= self.q < 0.5:
            raise InputError(f"PatchRenderer: q={self.q}; expected a share in [0, 0.5)")

    def matrix(self, size: tuple[int, int], keypoints: Float[Tensor, "m k 2"]) -> Float[Tensor, "m 3 3"]:
        """From a canonical sign of ``size`` to each sign in its image."""
        return get_transform_matrix(corners(size, keypoints.shape[1], self.source), keypoints, self.geometry)

    def __call__(
        self,
        images: Float[Tensor, "n 3 H W"],
        patch: Float[Tensor, "m 3 h w"],
        mask: Float[Tensor, "1 h w"],
        keypoints: Float[Tensor, "m k 2"],
        relight_coeffs: Float[Tensor, "m c 2"],
        obj_to_img: Int[Tensor, " m"],
        *,
        obj_mask: Float[Tensor, "1 h w"] | None = None,
        jitter: Float[Tensor, "m 3 3"] | None = None,
    ) -> Float[Tensor, "n 3 H W"]:
        """The images, in [0, 1], with the patch on every sign; sign k is in image ``obj_to_img[k]``.

        ``patch`` (3, h, w) for all signs or (m, 3, h, w); ``mask`` says where it is; ``obj_mask`` where the sign is;
        ``jitter`` moves the patch on the canonical sign before that cuts it. Raises InputError for unusable inputs.
        """
        size = self._check(images, patch, mask, keypoints, obj_to_img, obj_mask)
        patches = patch.expand(len(keypoints), *patch.shape[-3:])
        lit = relight(patches, relight_coeffs, self.relight)
        rgba = torch.cat((lit, torch.ones_like(lit[:, :1])), 1) * mask.to(lit)
        if jitter is not None:
            rgba = warp(rgba, jitter, size, self.interp)
        if obj_mask is not None:
            rgba = rgba * obj_mask.to(lit)
        height, width = images.shape[2:]
        moved = warp(rgba, self.matrix(size, keypoints), (height, width), self.interp)
        laid = images.new_zeros(len(images), 4, height, width).index_add(0, obj_to_img, moved.to(images)).clamp(0, 1)
        return (1 - laid[:, 3:]) * images + laid[:, :3]

    def fit(
        self,
        images: Float[Tensor, "n 3 H W"],
        keypoints: Float[Tensor, "m k 2"],
        obj_to_img: Int[Tensor, " m"],
        obj_mask: Float[Tensor, "1 h w"],
        *,
        sign: Float[Tensor, "3 h w"] | None = None,
    ) -> Float[Tensor, "m c 2"]:
        """The light of each sign in its clean image (see ``fit_relight``); ``sign`` is the canonical sign.

        Percentiles and polynomials are taken in the image, under the warped mask; the color transfer on the sign
        brought back to its canonical frame.
        """
        size = self._check(images, obj_mask, obj_mask, keypoints, obj_to_img, None)
        matrix, seen = self.matrix(size, keypoints), images[obj_to_img]
        mask, syn = obj_mask.expand(len(keypoints), 1, *size), None
        if sign is not None:
            syn = sign.to(seen).expand(len(keypoints), 3, *size)
        if self.relight == "color-transfer":
            seen = warp(seen, torch.linalg.inv(matrix), size).clamp(0, 1)
        else:
            frame = (images.shape[2], images.shape[3])
            mask = warp(mask.to(seen), matrix, frame, "nearest")
            syn = None if syn is None else warp(syn, matrix, frame)
        return fit_relight(seen, mask > 0.5, self.relight, q=self.q, syn=syn)

    def _check(
        self,
        images: Tensor,
        patch: Tensor,
        mask: Tensor,
        keypoints: Tensor,
        obj_to_img: Tensor,
        obj_mask: Tensor | None,
    ) -> tuple[int, int]:
        """The canonical size, once shapes and ranges are known to fit."""
        where = type(self).__name__
        check_inputs(where, images, None, (0.0, 1.0))
        if images.dim() != 4 or images.shape[1] != 3 or mask.dim() != 3 or len(mask) != 1:
            shapes = f"images {tuple(images.shape)}, mask {tuple(mask.shape)}"
            raise InputError(f"{where}: {shapes}; expected (n, 3, H, W) and (1, h, w)")
        m, size = len(keypoints), (mask.shape[1], mask.shape[2])
        others = [patch] if obj_mask is None else [patch, obj_mask]
        if any(tuple(t.shape[-2:]) != size for t in others) or patch.dim() not in (3, 4):
            shapes = ", ".join(str(tuple(t.shape)) for t in others)
            raise InputError(
                f"{where}: patch or sign of shape {shapes}; expected (..., {size[0]}, {size[1]}), as the mask"
            )
        if patch.dim() == 4 and len(patch) not in (1, m):
            raise InputError(f"{where}: {len(patch)} patches for {m} signs; expected 1 or {m}")
        check_inputs(f"{where}: patch", patch, None, (0.0, 1.0))
        check_labels(f"{where}: obj_to_img", obj_to_img, m, len(images))
        return size
