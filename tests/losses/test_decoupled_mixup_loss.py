"""The decoupled regulariser: no gradient at the competitor, values by hand and by loops, soft cross-entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from assay.losses import DecoupledBCELoss, DecoupledMixupLoss, decoupled_scores
from assay.runtime.errors import InputError


def _batch(n: int = 9, c: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.randint(c, (n,), generator=g)
    b = (a + torch.randint(1, c, (n,), generator=g)) % c
    return 2 * torch.randn(n, c, generator=g, dtype=torch.float64), a, b


def test_each_branch_has_no_gradient_at_its_competitor() -> None:
    logits, a, b = _batch()
    logits.requires_grad_()
    for column, own, other in ((0, a, b), (1, b, a)):
        (gradient,) = torch.autograd.grad(-decoupled_scores(logits, a, b).log()[:, column].sum(), logits)
        assert (gradient.gather(1, other[:, None]) == 0).all()
        # elsewhere H_c|b less 1 at a
        exp = logits.detach().exp().scatter(1, other[:, None], 0.0)
        expected = exp / exp.sum(1, keepdim=True) - F.one_hot(own, 5)
        expected = expected.scatter(1, other[:, None], 0.0)
        assert torch.allclose(gradient, expected, atol=1e-12)


def test_three_classes_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), math.log(2.0), 0.0]], dtype=torch.float64)
    a, b = torch.tensor([0]), torch.tensor([1])
    assert torch.allclose(decoupled_scores(logits, a, b), torch.tensor([[3 / 4, 2 / 3]]).double())
    soft = -0.3 * math.log(1 / 2) - 0.7 * math.log(1 / 3)
    both, less, more = (float(DecoupledMixupLoss(0.5, mode)(logits, a, b, 0.3)) for mode in ("both", "less", "more"))
    assert both == pytest.approx(soft - 0.5 * math.log(3 / 4) - 0.5 * math.log(2 / 3))
    assert less == pytest.approx(soft - 0.5 * math.log(3 / 4))
    assert more == pytest.approx(soft - 0.5 * math.log(2 / 3))
    scaled = float(DecoupledMixupLoss(0.5, scale="pow", xi=0.6, t=2.0)(logits, a, b, 0.3))
    assert scaled == pytest.approx(soft - 0.5 * 0.25 * math.log(3 / 4) - 0.5 * math.log(2 / 3))


def test_three_labels_compete_with_the_irrelevant_classes_alone() -> None:
    logits, _, _ = _batch(4, 6)
    labels = torch.tensor([[0, 1, 2]] * 4)
    found = decoupled_scores(logits, *labels.unbind(1))
    exp = logits.exp()
    for k in range(3):
        expected = exp[:, k] / (exp[:, k] + exp[:, 3:].sum(1))
        assert torch.allclose(found[:, k], expected)


def test_without_eta_or_without_a_second_class_it_is_soft_cross_entropy() -> None:
    logits, a, b = _batch()
    share = torch.linspace(0, 1, len(a), dtype=torch.float64)
    target = share[:, None] * F.one_hot(a, 5) + (1 - share[:, None]) * F.one_hot(b, 5)
    soft = F.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(DecoupledMixupLoss(0.0, reduction="none")(logits, a, b, share), soft, atol=1e-12)
    two = F.cross_entropy(logits[:, :2], torch.tensor([[0.4, 0.6]]).double().expand(9, 2))
    assert torch.allclose(DecoupledMixupLoss(0.0)(logits[:, :2], 0 * a, 0 * b + 1, 0.4), two)
    found = DecoupledMixupLoss(0.7, reduction="none")(logits, a, b, share)
    assert torch.allclose(found[[0, -1]], soft[[0, -1]])
    assert (found[1:-1] > soft[1:-1]).all()
    alone = DecoupledMixupLoss(0.7, reduction="none")(logits, a, a, share)
    assert torch.allclose(alone, F.cross_entropy(logits, a, reduction="none"))
    assert torch.isfinite(DecoupledMixupLoss()(logits[:, :2], a % 2, a % 2, 0.4))


def test_pseudo_labels_have_no_regulariser() -> None:
    logits, a, b = _batch()
    true = torch.tensor([[True, False]]).expand(len(a), 2)
    branch = -decoupled_scores(logits, a, b).log()[:, 0]
    soft = DecoupledMixupLoss(0.0, reduction="none")(logits, a, b, 0.3)
    found = DecoupledMixupLoss(0.4, reduction="none")(logits, a, b, 0.3, true)
    assert torch.allclose(found, soft + 0.4 * branch)


def test_two_hot_labels_by_loops() -> None:
    logits, a, b = _batch()
    b[0] = a[0]
    found = DecoupledBCELoss(xi=0.8, t=2.0, reduction="none")(logits, a, b, 0.3)
    masked = DecoupledBCELoss(xi=0.8, t=2.0, reduction="none")(logits, a, b, 0.3, torch.tensor([[False, True]] * 9))
    for value, first in ((found, (0.3 / 0.8) ** 2), (masked, 0.3)):
        for i in range(len(a)):
            y = np.zeros(5)
            y[int(a[i])] = first
            y[int(b[i])] = max((0.7 / 0.8) ** 2, y[int(b[i])])
            p = 1 / (1 + np.exp(-logits[i].numpy()))
            assert float(value[i]) == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum())
    sure = DecoupledBCELoss()(torch.tensor([[50.0, 50.0, -50.0]]), torch.tensor([0]), torch.tensor([1]), 0.9)
    assert float(sure) == pytest.approx(50 * (1 - 0.1 / 0.8), rel=1e-4)  # the larger share is 1, the smaller 1/8


def test_extreme_scores_stay_finite() -> None:
    logits, a, b = _batch()
    for loss in (DecoupledMixupLoss(), DecoupledBCELoss()):
        extreme = (1e4 * logits.sign()).requires_grad_()
        value = loss(extreme, a, b, 0.4)
        (gradient,) = torch.autograd.grad(value, extreme)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_a_class_without_a_share_has_label_zero_whatever_the_power() -> None:
    logits, a, b = _batch()
    for lam, label in ((1.0, a), (0.0, b)):
        whole = F.binary_cross_entropy_with_logits(logits, F.one_hot(label, logits.shape[1]).to(logits))
        assert torch.allclose(DecoupledBCELoss(t=0.0)(logits, a, b, lam), whole * logits.shape[1])


def test_bad_input() -> None:
    logits, a, b = _batch()
    for loss in (DecoupledMixupLoss(), DecoupledBCELoss()):
        for bad in (
            (logits, a, b, 1.5), (logits, a + 5, b, 0.5), (logits, a, b - 5, 0.5), (logits, a, b[:-1], 0.5),
            (logits * torch.nan, a, b, 0.5), (logits, a, b, 0.5, torch.ones(9, 1).bool()),
            (logits, a, b, 0.5, [[True, True]] * 9), (logits, a, b, torch.rand(4)), (logits, a, b, torch.rand(9, 1)),
        ):  # fmt: skip
            with pytest.raises(InputError):
                loss(*bad)
    with pytest.raises(InputError, match="at least 3"):
        DecoupledMixupLoss()(logits[:, :2], a * 0, b * 0 + 1, 0.5)
    for options in ({"eta": -1.0}, {"mode": "some"}, {"scale": "exp"}, {"xi": 0.0}, {"t": -1.0}, {"thr": 2.0}):
        with pytest.raises(InputError):
            DecoupledMixupLoss(**options)
    with pytest.raises(InputError):
        DecoupledBCELoss(xi=1.2)
    with pytest.raises(InputError):
        decoupled_scores(logits, a, b + 9)
