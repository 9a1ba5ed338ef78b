"""PGD that takes turns between a classifier and its detector, each time without disturbing the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.base import Goal
from assay.detect.adaptive_pgd import DetectorAwarePGD


def without(a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """``a`` less its component along ``b``, row by row."""
    flat, other = a.flatten(1).double(), b.flatten(1).double()
    share = (flat * other).sum(1) / other.square().sum(1).clamp(min=1e-30)
    return (flat - share[:, None] * other).view_as(a).to(a)


@dataclass(frozen=True, kw_only=True)
class OrthogonalPGD(DetectorAwarePGD):
    """Orthogonal PGD, the selective form (Bryniarski et al., 2021, arXiv:2106.15023, section 4).

    While the goal is not met it steps along the objective's gradient without its component along the detector's; once
    it is met, down the detector's score without the component along the objective's. ``weight`` is not used. Shapes,
    ranges and errors: see DetectorAwarePGD.
    """

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        level, own, passes = super(DetectorAwarePGD, self).slope(level, logits, z, goal)
        other, met = -self.score_slope(z), goal.met(logits.detach())
        return level, torch.where(wide(met, z), without(other, own), without(own, other)), passes + 1
