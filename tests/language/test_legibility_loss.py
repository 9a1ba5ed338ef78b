"""The objective and the counters: closed forms for every choice, masks, reductions, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.language import LegibilityLoss, legibility_metrics
from assay.papers import legit as paper
from assay.runtime.errors import InputError

SCORES = st.floats(-30, 30)


def softplus(z: float) -> float:
    return math.log1p(math.exp(-abs(z))) + max(z, 0.0)


@given(a=SCORES, b=SCORES)
def test_every_choice_by_hand(a: float, b: float) -> None:
    expected = {
        0: softplus(b - a) + softplus(-a),
        1: softplus(a - b) + softplus(-b),
        2: softplus(-a) + softplus(-b),
        3: softplus(a) + softplus(b),
    }
    s0, s1 = (torch.full((4,), v, dtype=torch.float64) for v in (a, b))
    found = LegibilityLoss("none")(s0, s1, torch.arange(4))
    for choice, value in expected.items():
        assert float(found[choice]) == pytest.approx(value, abs=1e-12)
        assert paper.hand_loss(a, b, choice) == pytest.approx(value, abs=1e-12)


def test_the_word_that_was_not_chosen_is_moved_by_the_comparison_alone() -> None:
    s = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    for chosen in (0, 1):
        (gradient,) = torch.autograd.grad(LegibilityLoss()(s[:1], s[1:], torch.tensor([chosen])), s)
        gap = s[chosen] - s[1 - chosen]
        assert torch.allclose(gradient[1 - chosen], torch.sigmoid(-gap))


def test_contract_of_losses() -> None:
    g = torch.Generator().manual_seed(0)
    s0, s1 = torch.randn(2, 12, generator=g, dtype=torch.float64)
    c = torch.arange(12) % 4
    each = LegibilityLoss("none")(s0, s1, c)
    assert torch.allclose(LegibilityLoss()(s0, s1, c), each.mean())
    assert torch.allclose(LegibilityLoss("sum")(s0, s1, c), each.sum())
    assert torch.allclose(LegibilityLoss("none")(s0[:5], s1[:5], c[:5]), each[:5])
    assert torch.isfinite(LegibilityLoss()(1e4 * s0, -1e4 * s1, c))
    assert torch.autograd.gradcheck(lambda a, b: LegibilityLoss()(a, b, c), (s0.requires_grad_(), s1.requires_grad_()))


def test_six_pairs_by_hand() -> None:
    s0 = torch.tensor([1.0, -1.0, 2.0, 0.5, -0.5, -2.0])
    s1 = torch.tensor([0.0, 2.0, 2.0, -1.0, 0.5, -1.0])
    found = legibility_metrics(s0, s1, torch.tensor([0, 1, 0, 2, 3, 1]))
    # positives: 1 hit, 2 hit, 2 hit, both (0.5 hit, -1 miss), last -1 miss; negatives: -0.5 right, 0.5 wrong
    tp, fn, fp, tn = 4, 2, 1, 1
    assert found == {
        "f1": pytest.approx(2 * tp / (2 * tp + fn + fp)),
        "precision": tp / (tp + fp),
        "recall": pytest.approx(tp / (tp + fn)),
        "accuracy": (tp + tn) / 8,
        "rank_accuracy": 1.0,
    }
    assert legibility_metrics(s1, s0, torch.tensor([0, 1, 0, 2, 3, 1]))["rank_accuracy"] == 0.25


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_counters_need_their_formulas(seed: int) -> None:
    real = paper.exact(LegibilityLoss("none"), seed)
    assert max(real.values()) <= 1e-12
    sham = paper.exact(paper._NegativeLoss("none"), seed)
    assert min(sham["loss 0"], sham["loss 1"]) > 1
    assert max(sham["loss 2"], sham["loss 3"], sham["counters"]) <= 1e-12


def test_a_score_of_zero_is_not_legible_and_nothing_to_count_is_zero() -> None:
    zero = torch.zeros(1)
    assert legibility_metrics(zero, zero, torch.tensor([2]))["recall"] == 0
    neither = legibility_metrics(zero, zero, torch.tensor([3]))
    assert neither == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 1, "rank_accuracy": 0}
    assert legibility_metrics(zero, zero, torch.tensor([0]))["rank_accuracy"] == 1


def test_bad_input() -> None:
    s, c = torch.zeros(3), torch.zeros(3, dtype=torch.int64)
    nan = torch.tensor([0.0, torch.nan, 0.0])
    bad = [(s[:0], s[:0], c[:0]), (nan, s, c), (s, nan, c), (s, s[:2], c), (s, s, c + 4), (s, s, c - 1)]
    bad += [(s, s, c.double()), (s[:, None], s[:, None], c), (s.long(), s, c), (s, s, c[:2])]
    for arguments in bad:
        for method in (LegibilityLoss(), legibility_metrics):
            with pytest.raises(InputError):
                method(*arguments)
    with pytest.raises(InputError):
        LegibilityLoss("median")  # type: ignore[arg-type]
