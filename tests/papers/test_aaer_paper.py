"""What the shams of AAER keep and what they take away."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from assay.losses import AAERLoss
from assay.papers import aaer as paper


def test_errors_vanish_and_each_sham_shows() -> None:
    real = paper.exact(AAERLoss, 4)
    assert max(real.values()) < 1e-12
    for name in paper.PAPER.shams:
        assert paper.exact(paper.RULES[name], 4)["loss"] > 0.1


def test_predictions_miss_all_abnormal_samples_below_a_quarter_turn() -> None:
    for angle in paper.ANGLES:
        share = paper.wave_errors(paper._PredictionTest(), angle, 5000, 0)["found"]
        assert (share == 0) == (angle < torch.pi / 2)


def test_swapped_roles_hold_back_the_normal_samples_alone() -> None:
    g = torch.Generator().manual_seed(0)
    before, after = torch.randn(40, 5, generator=g), torch.randn(40, 5, generator=g)
    y = torch.randint(5, (40,), generator=g)
    losses = [F.cross_entropy(z, y, reduction="none") for z in (before, after)]
    abnormal = losses[0] > losses[1]
    after[~abnormal] += 2.0  # the same logit shift for all classes: losses stay
    after.requires_grad_()
    rule = paper._SwappedRoles(**paper.FACTORS)
    extra = rule.excess(rule.terms(before, after, y))
    assert extra > 0
    (slope,) = torch.autograd.grad(extra, after)
    assert float(slope[abnormal].abs().max()) == 0
    assert float(slope[~abnormal].abs().min()) > 0
