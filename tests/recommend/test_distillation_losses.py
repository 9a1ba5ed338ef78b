"""The repair loss: its zero set, its signs and hand examples; the ranking loss against torch's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.recommend import BidirectionalRepairLoss, ListRankingLoss
from assay.recommend.ranking_loss import outside
from assay.runtime.errors import InputError


def case(seed: int, n: int = 6, items: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, items + 1, generator=g, dtype=torch.float64)
    return scores, torch.rand(n, items, generator=g).argsort(1) + 1


@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0, 2))
@settings(max_examples=40)
def test_pair_form_is_zero_on_equal_sets_and_at_least_the_margin_elsewhere(seed: int, k: int, margin: float) -> None:
    scores, lists = case(seed)
    own = scores[:, 1:].argsort(1, descending=True)[:, :k] + 1
    lists[0, :k] = own[0].flip(0)
    each = BidirectionalRepairLoss(margin, k).per_row(scores, lists)
    for row, theirs, mine in zip(each.tolist(), lists[:, :k].tolist(), own.tolist(), strict=True):
        assert row == 0 if set(theirs) == set(mine) else row >= margin - 1e-12


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=40)
def test_gradients_raise_what_is_missing_and_lower_what_is_wrong(seed: int, k: int) -> None:
    scores, lists = case(seed)
    scores.requires_grad_()
    own = scores.detach()[:, 1:].argsort(1, descending=True)[:, :k] + 1
    pair, threshold = (BidirectionalRepairLoss(0.5, k, form) for form in ("pair", "threshold"))
    (grad,) = torch.autograd.grad(pair.per_row(scores, lists).sum(), scores)
    (other,) = torch.autograd.grad(threshold.per_row(scores, lists).sum(), scores)
    for row in range(len(scores)):
        theirs, mine = set(lists[row, :k].tolist()), set(own[row].tolist())
        for item in range(scores.shape[1]):
            sign = -1 if item in theirs - mine else 1 if item in mine - theirs else 0
            assert grad[row, item].sign() == sign
            assert other[row, item].sign() == sign or (sign == 1 and other[row, item] == 0)
    assert grad.sum(1).abs().max() <= 1e-12


def test_both_forms_by_hand() -> None:
    """Four items of scores 4, 3, 2, 1; the victim lists 1 and 3: 3 is missing, 2 is wrong, 1 is common."""
    scores, lists = torch.tensor([[9.0, 4.0, 3.0, 2.0, 1.0]]), torch.tensor([[3, 1]])
    assert BidirectionalRepairLoss(0.5, 2).per_row(scores, lists).tolist() == [3 - 2 + 0.5]
    raised, lowered = 3 - 2 + 0.5, max(0.0, 3 - 4 + 0.5)  # the second best scores 3; the common one 4
    assert BidirectionalRepairLoss(0.5, 2, "threshold").per_row(scores, lists).tolist() == [raised + lowered]
    nothing = torch.tensor([[3, 4]])  # nothing in common: t' is t
    assert BidirectionalRepairLoss(0.5, 2).per_row(scores, nothing).item() == pytest.approx(
        (4 - 2 + 4 - 1 + 3 - 2 + 3 - 1) / 4 + 0.5
    )
    expected = (3 - 2 + 3 - 1) / 2 + 0.5 + (4 - 3 + 3 - 3) / 2 + 0.5
    assert BidirectionalRepairLoss(0.5, 2, "threshold").per_row(scores, nothing).item() == pytest.approx(expected)


def test_items_that_cannot_be_recommended_leave_the_losses_finite() -> None:
    scores, lists = case(1)
    scores[:, 0] = -torch.inf
    lists = lists[:, :5]
    hidden = torch.stack([torch.tensor([i for i in range(1, 10) if i not in row][:2]) for row in lists.tolist()])
    scores = scores.scatter(1, hidden, -torch.inf).requires_grad_()
    for loss in (BidirectionalRepairLoss(0.5, 3), BidirectionalRepairLoss(0.5, 3, "threshold")):
        (grad,) = torch.autograd.grad(loss(scores, lists), scores)
        assert torch.isfinite(grad).all()
    (grad,) = torch.autograd.grad(ListRankingLoss()(scores, lists, hidden[:, [0, 1, 0, 1, 0]]), scores)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("margins", [(0.5, 0.5), (0.0, 1.0), (2.0, 0.1)])
def test_ranking_loss_is_torch_s(margins: tuple[float, float]) -> None:
    scores, lists = case(4, 7, 30)
    first, others = lists[:, :10], lists[:, 10:20]
    listed, outsiders = scores.gather(1, first), scores.gather(1, others)
    order = nn.MarginRankingLoss(margins[0])(listed[:, :-1], listed[:, 1:], torch.ones(7, 9).double())
    theirs = order + nn.MarginRankingLoss(margins[1])(listed, outsiders, torch.ones(7, 10).double())
    torch.testing.assert_close(ListRankingLoss(*margins)(scores, first, others), theirs)


def test_a_list_of_one_item_has_no_order() -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0, 1.8]])
    assert ListRankingLoss()(scores, torch.tensor([[1]]), torch.tensor([[3]])).item() == pytest.approx(0.3)


@given(st.integers(0, 10_000), st.integers(1, 8))
@settings(max_examples=30)
def test_outsiders_are_all_items_that_are_not_listed(seed: int, k: int) -> None:
    _, lists = case(seed)
    found = outside(lists[:, :k], torch.arange(9 - k).expand(len(lists), -1).contiguous())
    for row, listed in zip(found.tolist(), lists[:, :k].tolist(), strict=True):
        assert row == sorted(set(range(1, 10)) - set(listed))


def test_bad_input() -> None:
    scores, lists = case(0)
    for call in (
        lambda: BidirectionalRepairLoss(-1.0),
        lambda: BidirectionalRepairLoss(K=0),
        lambda: BidirectionalRepairLoss(form="both"),  # type: ignore[arg-type]
        lambda: ListRankingLoss(-1.0),
        lambda: BidirectionalRepairLoss(K=3)(scores[0], lists),
        lambda: BidirectionalRepairLoss(K=3)(scores, lists[:-1]),
        lambda: BidirectionalRepairLoss(K=3)(scores, lists[:, :2]),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
