"""EnsLoss: slopes of a convex calibrated loss, and the fixed losses beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from assay.losses import (
    EnsLoss,
    ExponentialLoss,
    HingeLoss,
    check_derivatives,
    inverse_box_cox,
    is_classification_calibrated,
)
from assay.papers.ensloss import RULES, exact
from assay.runtime.errors import InputError


def _batch(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return 3 * torch.randn(n, generator=g, dtype=torch.float64), torch.randint(2, (n,), generator=g)


def test_slopes_meet_the_reference_and_all_conditions() -> None:
    found = exact(EnsLoss, 0, 200)
    assert found["sign"] <= -1e-6
    assert found["order"] <= 0
    assert max(found["size"], found["reference"], found["gradient"]) < 1e-12
    assert found["limit"] < 1e-4


@pytest.mark.parametrize("sham", [s for s in RULES if s])
def test_slopes_of_shams_are_of_no_convex_loss(sham: str) -> None:
    assert exact(RULES[sham], 0, 20)["order"] > 0.1
    f, y = _batch()
    with pytest.raises(InputError, match="decreases"):
        check_derivatives(f * (2 * y - 1), RULES[sham]().derivatives(f, y))


def test_every_call_draws_anew_and_the_state_goes_on() -> None:
    (f, y), loss = _batch(), EnsLoss(seed=4)
    first, second = loss(f, y), loss(f, y)
    assert first != second
    again = EnsLoss(seed=4)
    assert again(f, y) == first
    resumed = EnsLoss(seed=4)
    resumed.load_state_dict(again.state_dict())
    assert resumed(f, y) == second
    assert EnsLoss(seed=5)(f, y) != first
    before = loss.derivatives(f, y)
    assert torch.equal(before, loss.derivatives(f, y))


def test_shapes_and_reductions() -> None:
    f, y = _batch()
    each = EnsLoss(reduction="none")(f[:, None], y)
    assert each.shape == (30,)
    assert torch.allclose(EnsLoss()(f, y), each.mean())
    assert torch.isfinite(EnsLoss()(f[:1], y[:1]))
    half = EnsLoss()(f.bfloat16(), y)
    assert half.dtype == torch.float32
    assert torch.equal(EnsLoss().eval()(f, y), F.softplus(-f * (2 * y - 1)).mean())


def test_multiclass_margins() -> None:
    g = torch.Generator().manual_seed(1)
    logits, y = torch.randn(12, 4, generator=g, dtype=torch.float64, requires_grad=True), torch.arange(12) % 4
    loss = EnsLoss(multiclass=True, reduction="sum")
    z = torch.stack([row[c] - row[torch.arange(4) != c].max() for row, c in zip(logits.detach(), y, strict=True)])
    slopes = loss.derivatives(logits, y)
    check_derivatives(z, slopes)
    (gradient,) = torch.autograd.grad(loss(logits, y), logits)
    assert torch.allclose(gradient.gather(1, y[:, None])[:, 0], slopes)
    assert torch.allclose(gradient.sum(1), torch.zeros(12, dtype=torch.float64), atol=1e-15)


def test_lambda_is_drawn_after_each_period() -> None:
    loss, seen = EnsLoss(period=2), []
    for _ in range(6):
        loss.step_epoch()
        seen.append(loss.lam)
    assert seen[0] == 0
    assert seen[1] == seen[2] != seen[3] == seen[4] != seen[5]
    assert all(-1 <= v <= 1 for v in seen)
    e = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.allclose(inverse_box_cox(e, 1.0), (1 + e).clamp_min(0))
    resumed = EnsLoss(period=2)
    resumed.load_state_dict(loss.state_dict())
    for _ in range(3):
        assert resumed.lam == loss.lam
        resumed.step_epoch()
        loss.step_epoch()


def test_the_tail_can_be_left_out() -> None:
    f, y = _batch()
    z, kept, cut = f * (2 * y - 1), EnsLoss(tail="none").derivatives(f, y), EnsLoss().derivatives(f, y)
    assert torch.equal(kept[z <= 1], cut[z <= 1])
    assert torch.allclose((cut + 1e-6) * z.clamp_min(1), kept + 1e-6, atol=1e-12)


def test_fixed_losses_are_their_formulas_and_calibrated() -> None:
    f, y = _batch()
    z = f * (2 * y - 1)
    assert torch.allclose(HingeLoss()(f, y), (1 - z).clamp_min(0).mean())
    assert torch.allclose(ExponentialLoss(reduction="none")(f, y), (-z).exp())
    with pytest.warns(RuntimeWarning, match="clamped"):
        assert torch.isfinite(ExponentialLoss()(torch.tensor([-1e4]), torch.tensor([1])))
    for phi in (lambda v: np.maximum(1 - v, 0), lambda v: np.exp(-v), lambda v: np.logaddexp(0, -v)):
        assert is_classification_calibrated(phi)
    for phi in (lambda v: np.maximum(-v, 0), lambda v: np.abs(v), lambda v: v**2, lambda v: np.exp(v)):
        assert not is_classification_calibrated(phi)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EnsLoss(clip=0.0),
        lambda: EnsLoss(lam=float("inf")),
        lambda: EnsLoss(tail="log"),  # type: ignore[arg-type]
        lambda: EnsLoss(reduction="median"),  # type: ignore[arg-type]
        lambda: EnsLoss()(torch.randn(3, 2), torch.ones(3, dtype=torch.int64)),
        lambda: EnsLoss()(torch.randn(3), torch.tensor([-1, 1, 1])),
        lambda: is_classification_calibrated(lambda v: -(v**2)),
        lambda: is_classification_calibrated(lambda v: v * np.nan),
        lambda: check_derivatives(torch.zeros(3), torch.zeros(2)),
        lambda: check_derivatives(torch.zeros(3), torch.zeros(3)),
    ],
)
def test_bad_input(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]
