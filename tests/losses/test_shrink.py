"""Exact checks of shrunk class spaces and of the loss inside them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.losses import ShrinkLoss, shrink_targets
from assay.papers.shrinkmatch import _drawn
from assay.runtime.errors import InputError


def _probs(rows: int, c: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (6 * torch.rand(rows, 1, generator=g) * torch.randn(rows, c, generator=g)).double().softmax(1)


def test_worked_example() -> None:
    space = shrink_targets(torch.tensor([[0.5, 0.4, 0.05, 0.05]], dtype=torch.float64), 0.8)
    assert space.keep.tolist() == [[True, False, True, True]]
    assert float(space.confidence) == pytest.approx(0.5 / 0.6)
    assert space.removed.tolist() == [1]
    assert space.satisfied.all()


def test_classes_and_loss_of_the_double_loop() -> None:
    for case in _drawn(300, seed=5):
        space = shrink_targets(case["probs"])
        assert torch.equal(space.keep, case["keep"])
        assert float(ShrinkLoss()(case["logits"], case["probs"])) == pytest.approx(case["loss"], abs=1e-12)


@given(st.integers(0, 10_000), st.integers(3, 12), st.floats(0.3, 0.99))
def test_the_space_is_the_smallest_that_makes_the_label_certain(seed: int, c: int, tau: float) -> None:
    probs = _probs(5, c, seed)
    space = shrink_targets(probs, tau)
    for q, keep, top, confidence, enough, gone in zip(
        probs, space.keep, space.top1, space.confidence, space.satisfied, space.removed, strict=True
    ):
        assert int(top) == int(q.argmax())
        assert keep[top]
        assert int((~keep).sum()) == int(gone)
        assert float(confidence) == pytest.approx(float(q[top] / q[keep].sum()) if gone else float(q[top]))
        assert bool(enough) == bool(confidence >= tau)
        assert int(keep.sum()) >= 2
        if gone:  # what is gone are the strongest rivals, and one of them less would not do
            assert q[~keep].min() >= q[keep & (torch.arange(c) != top)].max()
            weakest = q[~keep].min()
            assert gone == 1 or q[top] / (q[keep].sum() + weakest) < tau
        else:
            assert q[top] >= tau


def test_equal_probabilities_rank_by_class() -> None:
    space = shrink_targets(torch.full((1, 4), 0.25), 0.9)
    assert space.keep.tolist() == [[True, False, False, True]]
    assert not space.satisfied.any()


def test_unsatisfied_and_certain_rows_add_nothing() -> None:
    probs = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25], [0.6, 0.38, 0.01, 0.01]])
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    rest = F.cross_entropy(logits[2:, [0, 2, 3]], torch.zeros(1, dtype=torch.int64))
    assert float(ShrinkLoss(0.95)(logits, probs)) == pytest.approx(0.6 * float(rest) / 3)


def test_no_gradient_reaches_removed_classes_or_targets() -> None:
    logits = torch.randn(8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    probs = _probs(8, 10, 1).requires_grad_()
    loss = ShrinkLoss()(logits, probs)
    loss.backward()
    space = shrink_targets(probs.detach())
    assert probs.grad is None
    assert logits.grad is not None
    assert (logits.grad[~space.keep] == 0).all()
    assert (logits.grad[space.satisfied & (space.removed > 0)].abs().sum(1) > 0).all()
    assert torch.autograd.gradcheck(lambda z: ShrinkLoss()(z, probs.detach()), (logits,))


@pytest.mark.parametrize(
    ("probs", "tau"),
    [
        (torch.full((2, 2), 0.5), 0.9),
        (torch.full((2, 4), 0.3), 0.9),
        (torch.full((2, 4), math.nan), 0.9),
        (torch.full((2, 4), 0.25), 1.0),
        (torch.full((0, 4), 0.25), 0.9),
        (torch.tensor([[1.2, -0.1, -0.1]]), 0.9),
    ],
)
def test_bad_input(probs: torch.Tensor, tau: float) -> None:
    with pytest.raises(InputError):
        shrink_targets(probs, tau)


def test_bad_logits() -> None:
    with pytest.raises(InputError, match="same shape"):
        ShrinkLoss()(torch.zeros(2, 3), torch.full((2, 4), 0.25))
    with pytest.raises(InputError, match="tau"):
        ShrinkLoss(0.0)
