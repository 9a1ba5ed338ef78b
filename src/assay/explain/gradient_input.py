"""Gradient times input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from assay.explain.base import GradientExplainer


@dataclass(frozen=True, kw_only=True)
class GradientInput(GradientExplainer):
    """Input times gradient of the target logit (Shrikumar et al., 2016, arXiv:1605.01713, section 3.1).

    On a bias-free piecewise linear network the attributions sum to the logit. Units: logits. Shapes and errors: see
    Explainer.
    """

    def combine(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x * gradient
