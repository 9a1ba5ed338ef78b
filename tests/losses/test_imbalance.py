"""Losses for imbalanced data against double loops, closed forms and what they reduce to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from assay.dynamics import simplex_etf
from assay.losses import DeferredReweighting, FocalLoss, LDAMLoss, SupConLoss, class_balanced_weights
from assay.runtime.errors import InputError


def double_loop(h: torch.Tensor, y: torch.Tensor, tau: float) -> float:
    z = [v / v.norm() for v in h]
    total, anchors = 0.0, 0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        if positives:
            below = sum(math.exp(float(z[i] @ z[a]) / tau) for a in others)
            total -= sum(math.log(math.exp(float(z[i] @ z[p]) / tau) / below) for p in positives) / len(positives)
            anchors += 1
    return total / anchors


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_sup_con_is_the_double_loop(tau: float) -> None:
    g = torch.Generator().manual_seed(0)
    h, y = torch.randn(15, 4, generator=g, dtype=torch.float64), torch.randint(4, (15,), generator=g)
    y[0] = 9  # an anchor of its own class
    assert float(SupConLoss(tau)(h, y)) == pytest.approx(double_loop(h, y, tau), abs=1e-10)
    assert float(SupConLoss(tau)(7 * h, y)) == pytest.approx(double_loop(h, y, tau), abs=1e-10)
    each = SupConLoss(tau, reduction="none")(h, y)
    assert float(each[0]) == 0
    assert float(each.sum()) == pytest.approx(float(SupConLoss(tau, reduction="sum")(h, y)))


@pytest.mark.parametrize(("c", "n", "tau"), [(2, 2, 0.1), (5, 4, 0.1), (10, 3, 0.5)])
def test_sup_con_on_a_collapsed_simplex(c: int, n: int, tau: float) -> None:
    h, y = simplex_etf(c, c + 1, scale=3.0).repeat_interleave(n, 0), torch.arange(c).repeat_interleave(n)
    far = (c * n - n) * math.exp(-1 / ((c - 1) * tau))
    expected = math.log((n - 1) * math.exp(1 / tau) + far) - 1 / tau
    assert float(SupConLoss(tau)(h, y)) == pytest.approx(expected, abs=1e-9)


def test_sup_con_with_keys_is_the_loss_of_those_anchors_in_one_batch() -> None:
    g = torch.Generator().manual_seed(1)
    h, y = torch.randn(12, 3, generator=g, dtype=torch.float64), torch.arange(12) % 3
    whole = SupConLoss(reduction="none")(h, y)
    assert torch.allclose(SupConLoss(reduction="none")(h[:5], y[:5], h[5:], y[5:]), whole[:5])


def test_sup_con_without_positives_is_zero_with_a_gradient() -> None:
    h = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss = SupConLoss()(h, torch.arange(3))
    (gradient,) = torch.autograd.grad(loss, h)
    assert float(loss.detach()) == 0
    assert not gradient.any()


def test_class_balanced_weights_at_both_ends() -> None:
    counts = torch.tensor([5, 50, 500, 7])
    assert torch.allclose(class_balanced_weights(counts, 0.0), torch.ones(4, dtype=torch.float64), atol=1e-12)
    inverse = (1 / counts.double()) / (1 / counts.double()).mean()
    assert torch.allclose(class_balanced_weights(counts, 1 - 1e-12), inverse, atol=1e-6)
    found = class_balanced_weights(counts, 0.99)
    direct = 0.01 / (1 - 0.99 ** counts.double())
    assert torch.allclose(found, direct / direct.mean(), atol=1e-12)


def test_deferred_weights() -> None:
    counts = torch.tensor([10, 0, 40])
    for weighting in ("cb", "inverse"):
        method = DeferredReweighting(weighting=weighting, defer=3)
        assert method.weights(counts, 2).tolist() == [1, 1, 1]
        late = method.weights(counts, 3)
        assert late[1] == 1
        assert float(late[0] + late[2]) == pytest.approx(2)
        assert float(late[0] / late[2]) == pytest.approx(4, rel=0.01)
    assert DeferredReweighting(weighting="none", defer=0).weights(counts, 5).tolist() == [1, 1, 1]


def test_focal_is_its_formula_and_cross_entropy_at_zero() -> None:
    logits, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 5
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    assert torch.allclose(FocalLoss(1.5, reduction="none")(logits, y), -((1 - p) ** 1.5) * p.log())
    assert torch.allclose(FocalLoss(0.0)(logits, y), F.cross_entropy(logits, y))


def test_ldam_is_cross_entropy_of_lowered_logits() -> None:
    counts = [1000, 100, 10]
    cosines, y = torch.rand(12, 3, dtype=torch.float64) * 2 - 1, torch.arange(12) % 3
    margins = torch.tensor([n**-0.25 for n in counts], dtype=torch.float64)
    margins *= 0.5 / margins.max()
    lowered = cosines.clone()
    lowered[torch.arange(12), y] -= margins[y]
    assert torch.allclose(LDAMLoss(counts)(cosines, y), F.cross_entropy(30 * lowered, y), atol=1e-12)
    scaled = LDAMLoss(counts, max_margin=15.0, scale=1.0)(30 * cosines, y)
    assert torch.allclose(scaled, LDAMLoss(counts)(cosines, y), atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SupConLoss(0.0),
        lambda: SupConLoss(reduction="median"),
        lambda: SupConLoss()(torch.randn(3, 4), torch.arange(3), torch.randn(2, 5), torch.arange(2)),
        lambda: SupConLoss()(torch.randn(3, 4), torch.arange(3), torch.randn(2, 4)),
        lambda: SupConLoss()(torch.randn(3, 4), torch.arange(3), key_target=torch.arange(2)),
        lambda: class_balanced_weights(torch.tensor([3, 0])),
        lambda: class_balanced_weights(torch.tensor([3, 1]), 1.0),
        lambda: DeferredReweighting(defer=-1),
        lambda: DeferredReweighting(beta=-0.1),
        lambda: FocalLoss(-1.0),
        lambda: LDAMLoss([3, 0]),
        lambda: LDAMLoss([3, 1])(torch.randn(2, 3), torch.arange(2)),
        lambda: LDAMLoss(max_margin=0.0),
    ],
)
def test_bad_input(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]
