"""PGD against a classifier and its detector at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks import PGD
from assay.attacks.base import Goal
from assay.detect.base import FittedDetector
from assay.runtime.inference import evaluating


@dataclass(frozen=True, kw_only=True)
class DetectorAwarePGD(PGD):
    """Climb objective(logits) - ``weight`` x score(z), the score followed by ``detector.graph`` (Carlini & Wagner,
    2017, arXiv:1705.07263, section 2.3: an adversary that knows the detector).

    All ``steps`` are taken: an input that is misclassified may still be found. Success is misclassification alone: ask
    the detector about ``x_adv`` besides. Shapes, ranges and errors: see Attack; InputError from detectors without a
    gradient.
    """

    detector: FittedDetector
    weight: float = 1.0
    early_stop: bool = False

    def score_slope(self, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The gradient of the detector's score at ``z``."""
        point = z.detach().requires_grad_()
        with torch.enable_grad(), evaluating(self.detector.networks):
            (grad,) = torch.autograd.grad(self.detector.graph(point).sum(), point)
        return grad

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        level, grad, passes = super().slope(level, logits, z, goal)
        return level, grad - self.weight * self.score_slope(z), passes + 1
