"""The gradient of the class score."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from assay.explain.base import GradientExplainer


@dataclass(frozen=True, kw_only=True)
class Gradient(GradientExplainer):
    """The gradient of the target logit (Simonyan et al., 2014, arXiv:1312.6034, section 3, eq. 4).

    ``absolute`` gives magnitudes, as in the paper's saliency maps (which also take the maximum over channels: the
    shape of ``x`` is kept here); otherwise the sign says which way the logit moves. Units: logits per unit of ``x``.
    Shapes and errors: see Explainer.
    """

    absolute: bool = False

    def combine(self, x: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs() if self.absolute else gradient
