"""Integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.explain.base import GradientExplainer
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws

RULES = ("gauss-legendre", "riemann-left", "riemann-middle", "riemann-right", "trapezoid")


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(GradientExplainer):
    """Gradients averaged on the straight line from a baseline (Sundararajan et al., 2017, arXiv:1703.01365, eq. 1, 3).

    attribution = (x - baseline) * integral over a in [0, 1] of grad f_target(baseline + a (x - baseline)), by ``steps``
    points of ``rule``. Completeness: the attributions sum to f(x) - f(baseline), exactly where f is linear and as far
    as the rule resolves the line elsewhere. ``baseline`` is one value for all elements, in the units of ``x``. Units:
    logits. Shapes and errors: see Explainer.
    """

    steps: int = 50
    rule: Literal["gauss-legendre", "riemann-left", "riemann-middle", "riemann-right", "trapezoid"] = "gauss-legendre"
    baseline: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in RULES:
            raise unknown("rule of IntegratedGradients", self.rule, RULES)
        least = 2 if self.rule == "trapezoid" else 1
        if self.steps < least or not np.isfinite(self.baseline):
            raise InputError(
                f"IntegratedGradients: steps={self.steps}, baseline={self.baseline}; "
                f"expected steps >= {least} and a finite baseline"
            )

    def nodes(self) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Positions in [0, 1] and weights (summing to 1) of the quadrature."""
        k = self.steps
        if self.rule == "gauss-legendre":
            t, w = np.polynomial.legendre.leggauss(k)
            return (t + 1) / 2, w / 2
        if self.rule == "trapezoid":
            w = np.full(k, 1 / (k - 1))
            w[[0, -1]] /= 2
            return np.linspace(0, 1, k), w
        offset = {"riemann-left": 0.0, "riemann-middle": 0.5, "riemann-right": 1.0}[self.rule]
        return (np.arange(k) + offset) / k, np.full(k, 1 / k)

    def weights(self) -> Tensor:
        return torch.from_numpy(self.nodes()[1])

    def points(self, x: Tensor, draws: Draws) -> Tensor:
        t = torch.from_numpy(self.nodes()[0]).to(x).reshape(1, -1, *[1] * (x.dim() - 1))
        return self.baseline + t * (x - self.baseline)[:, None]

    def combine(self, x: Tensor, gradient: Tensor) -> Tensor:
        return (x - self.baseline) * gradient
