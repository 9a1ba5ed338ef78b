"""Vector scaling."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from assay.calibrate.affine import AffineMap, fit_affine
from assay.calibrate.base import Calibrator, Outputs


@dataclass(frozen=True, kw_only=True)
class VectorScaling(Calibrator):
    """A factor and an intercept for each logit: softmax(w * z + b), w and b (c,), by maximum likelihood (Guo et al.,
    2017, arXiv:1706.04599, section 4.2).

    2 c numbers are learned, the starting point is the optimal temperature. Where the samples are separable the
    optimum lies at infinity, and the search stops where its slope is below 1e-6.
    """

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> AffineMap:
        return fit_affine(outputs, y, diagonal=True)
