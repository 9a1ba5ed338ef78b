"""AAER's loss: by hand, what carries a gradient, ties, empty sets, half precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.losses import AAERLoss
from assay.papers.aaer import written_out
from assay.runtime.errors import InputError

LOG2 = 0.6931471805599453


def four() -> tuple[Tensor, Tensor, Tensor]:
    """Four samples of class 0 with logits (m, 0): the margins m of the first two grow, so that they are abnormal."""
    before = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    after = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    return before, after, torch.zeros(4, dtype=torch.int64)


def batch(seed: int, n: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    before, after = (2 * torch.randn(n, 5, generator=g, dtype=torch.float64) for _ in range(2))
    return before, after, torch.randint(5, (n,), generator=g)


def test_by_hand() -> None:
    """l = log(1 + exp(-m)): 1.3133, 0.6931, 0.1269, 0.3133 before and 0.1269, 0.3133, 0.6931, 0.4741 after."""
    before, after, y = four()
    after.requires_grad_()
    loss, stats = AAERLoss()(after, y, before, return_stats=True)
    c = (1.3132616875182228 - 0.1269280110429726 + LOG2 - 0.31326168751822286) / 2
    assert int(stats["n_abnormal"]) == 2
    assert float(stats["ce_gap"]) == pytest.approx(c, abs=1e-12)
    assert float(stats["logit_shift_abnormal"]) == pytest.approx((9 + 1) / 2)
    assert float(stats["logit_shift_normal"]) == pytest.approx((4 + 0.25) / 2)
    mean = (0.1269280110429726 + 0.31326168751822286 + LOG2 + 0.4740769841801067) / 4
    assert loss.item() == pytest.approx(mean + 0.5 * (4 * c + 1.5 * (5 - 2.125)), abs=1e-7)
    assert not any(t.requires_grad for t in stats.values())


@pytest.mark.parametrize("seed", range(6))
def test_written_out(seed: int) -> None:
    before, after, y = batch(seed)
    assert abs(float(AAERLoss()(after, y, before)) - written_out(before.numpy(), after.numpy(), y.numpy())) < 1e-12


@pytest.mark.parametrize("ce_gradient", [True, False])
def test_gradient_is_that_of_its_definition_with_the_number_and_the_normal_shift_constant(ce_gradient: bool) -> None:
    before, after, y = batch(1)
    after.requires_grad_()
    (found,) = torch.autograd.grad(AAERLoss(ce_gradient=ce_gradient)(after, y, before), after)
    l0, l1 = (F.cross_entropy(z, y, reduction="none") for z in (before, after))
    a = (l0 > l1).detach()
    shift = (after - before).square().sum(1)
    assert shift[a].mean() > shift[~a].mean(), "the hinge is open"
    c = (l0 - l1)[a].mean() if ce_gradient else 0.0
    share = float(a.sum()) / len(y)
    loss = l1.mean() + share * (4 * c + 1.5 * (shift[a].mean() - shift[~a].mean().detach()))
    (expected,) = torch.autograd.grad(loss, after)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_number_alone_has_no_gradient_and_factors_of_zero_are_cross_entropy_bit_for_bit() -> None:
    before, after, y = batch(2)
    before, after = before.float(), after.float().requires_grad_()
    plain = torch.autograd.grad(F.cross_entropy(after, y), after)[0]
    for factors in ((5.0, 0.0, 0.0), (0.0, 4.0, 1.5)):
        loss = AAERLoss(*factors)(after, y, before)
        assert torch.equal(loss, F.cross_entropy(after, y))
        assert torch.equal(torch.autograd.grad(loss, after)[0], plain)


def test_a_closed_hinge_adds_nothing() -> None:
    before, after, y = four()
    far = after.clone()
    far[2, 0] = -6.0  # a normal sample moves most
    assert float(AAERLoss(lam_ce=0.0)(far, y, before)) == pytest.approx(float(F.cross_entropy(far, y)))


def test_all_abnormal_or_none_is_cross_entropy_and_ties_are_normal() -> None:
    before, after, y = four()
    for rows in (slice(0, 2), slice(2, 4)):
        assert torch.equal(AAERLoss()(after[rows], y[rows], before[rows]), F.cross_entropy(after[rows], y[rows]))
    assert int(AAERLoss().terms(before, before, y)["n_abnormal"]) == 0


def test_the_start_is_detached() -> None:
    before, after, y = batch(3)
    assert not AAERLoss()(after, y, before.requires_grad_()).requires_grad


def test_half_precision_is_computed_in_single() -> None:
    before, after, y = (t.to(torch.bfloat16) if t.is_floating_point() else t for t in batch(4))
    loss = AAERLoss()(after, y, before)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, AAERLoss()(after.float(), y, before.float()))


def test_bad_input() -> None:
    before, after, y = batch(5)
    nan = after.clone()
    nan[0, 0] = torch.nan
    for bad in ((after[0], y, before), (after, y + 5, before), (nan, y, before), (after, y, before[:, :2]),
                (after[:0], y[:0], before[:0]), (after, y.double(), before)):  # fmt: skip
        with pytest.raises(InputError):
            AAERLoss()(*bad)
    for name in ("lam_number", "lam_ce", "lam_logit"):
        with pytest.raises(InputError, match=name):
            AAERLoss(**{name: -1.0})
