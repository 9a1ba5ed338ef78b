"""Losses for wrong labels against their formulas, their limits, and the theorems that they rest on."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assay.labels import GCE
from assay.losses import (
    BackwardCorrectionLoss,
    BootstrapLoss,
    ForwardCorrectionLoss,
    LogitAdjustedLoss,
    SymmetricCrossEntropyLoss,
)
from assay.runtime.errors import InputError

ALL = [BackwardCorrectionLoss, BootstrapLoss, ForwardCorrectionLoss, LogitAdjustedLoss]
seeds = st.integers(0, 2**31)


def _logits(seed: int, n: int = 9, c: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, c, generator=g, dtype=torch.float64), torch.randint(c, (n,), generator=g)


def _transition(seed: int, c: int = 4) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 0.6 * torch.eye(c, dtype=torch.float64) + 0.4 * torch.rand(c, c, generator=g, dtype=torch.float64).softmax(1)


def _each(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize("cls", ALL)
def test_without_its_ingredient_it_is_cross_entropy(cls: type) -> None:
    logits, y = _logits(0)
    plain = {BootstrapLoss: {"beta": 1.0}}.get(cls, {})
    assert torch.allclose(cls(reduction="none", **plain)(logits, y), _each(logits, y), atol=1e-12)


def test_gce_is_its_formula_between_cross_entropy_and_the_absolute_error() -> None:
    logits, y = _logits(1)
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    for q in (0.3, 0.7, 1.0):
        found = GCE(q=q).loss(None)(logits, y)  # type: ignore[arg-type]
        assert torch.allclose(found, ((1 - p**q) / q).mean(), atol=1e-12)
    assert float(GCE(q=1e-7).loss(None)(logits, y)) == pytest.approx(float(F.cross_entropy(logits, y)), abs=1e-5)  # type: ignore[arg-type]


@given(seeds)
def test_symmetric_cross_entropy_is_both_directions_written_out(seed: int) -> None:
    logits, y = _logits(seed)
    p, q = logits.softmax(1), F.one_hot(y, 4).double()
    log_q = torch.where(q > 0, torch.zeros_like(q), torch.full_like(q, -6.0))
    expected = 0.3 * -(q * p.log()).sum(1) + 2 * -(p * log_q).sum(1)
    assert torch.allclose(SymmetricCrossEntropyLoss(0.3, 2, -6, "none")(logits, y), expected, atol=1e-12)


@given(seeds)
def test_the_reverse_term_is_symmetric(seed: int) -> None:
    """Its sum over all labels is a constant, which is what makes it tolerate uniform noise."""
    logits, _ = _logits(seed)
    loss = SymmetricCrossEntropyLoss(0, 1, -4, "none")
    total = sum(loss(logits, torch.full((9,), k)) for k in range(4))
    assert torch.allclose(total, torch.full((9,), 12.0, dtype=torch.float64), atol=1e-12)


@given(seeds)
def test_bootstrap_is_cross_entropy_of_the_mixed_label(seed: int) -> None:
    logits, y = _logits(seed)
    given_label, p = F.one_hot(y, 4).double(), logits.softmax(1)
    hard = F.one_hot(p.argmax(1), 4).double()
    for own, loss in ((p, BootstrapLoss(0.7)), (hard, BootstrapLoss(0.7, hard=True))):
        expected = F.cross_entropy(logits, 0.7 * given_label + 0.3 * own)
        assert float(loss(logits, y)) == pytest.approx(float(expected), abs=1e-12)
    assert (BootstrapLoss().beta, BootstrapLoss(hard=True).beta) == (0.95, 0.8)


def test_soft_bootstrap_learns_from_its_own_entropy() -> None:
    logits, y = _logits(3)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(BootstrapLoss(0.0, reduction="sum")(logits, y), logits)
    p = logits.detach().softmax(1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    assert torch.allclose(found, -p * (p.log() + entropy), atol=1e-12)


@given(seeds)
def test_backward_correction_is_unbiased(seed: int) -> None:
    """Theorem 1: the mean over given labels of the true class i is the cross-entropy of i."""
    (logits, _), t = _logits(seed), _transition(seed)
    loss = BackwardCorrectionLoss(t, "none")
    for i in range(4):
        mean = sum(t[i, j] * loss(logits, torch.full((9,), j)) for j in range(4))
        assert torch.allclose(mean, _each(logits, torch.full((9,), i)), atol=1e-10)


@given(seeds)
def test_forward_correction_is_least_at_the_true_probabilities(seed: int) -> None:
    """Theorem 2: under given labels drawn from T^T p the gradient vanishes at logits log p."""
    (logits, y), t = _logits(seed), _transition(seed)
    given_p = logits.softmax(1) @ t
    loss = ForwardCorrectionLoss(t, "none")
    assert torch.allclose(loss(logits, y), -given_p.gather(1, y[:, None])[:, 0].log(), atol=1e-12)
    z = logits.clone().requires_grad_()
    risk = sum((given_p[:, j] * loss(z, torch.full((9,), j))).sum() for j in range(4))
    assert float(torch.autograd.grad(risk, z)[0].abs().max()) < 1e-12


def test_forward_correction_keeps_cells_that_are_zero() -> None:
    logits, y = _logits(5)
    logits.requires_grad_()
    loss = ForwardCorrectionLoss(torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "none")
    swapped = torch.tensor([1, 0, 2, 3])[y]
    assert torch.allclose(loss(logits, y), _each(logits, swapped), atol=1e-12)
    assert torch.isfinite(torch.autograd.grad(loss(logits, y).sum(), logits)[0]).all()


@given(seeds)
def test_logit_adjustment_is_least_at_the_balanced_problem(seed: int) -> None:
    logits, _ = _logits(seed)
    counts = [500, 30, 7, 90]
    prior = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    posterior = (logits.softmax(1) * prior) / (logits.softmax(1) * prior).sum(1, keepdim=True)
    z, loss = logits.clone().requires_grad_(), LogitAdjustedLoss(counts, reduction="none")
    risk = sum((posterior[:, j] * loss(z, torch.full((9,), j))).sum() for j in range(4))
    assert float(torch.autograd.grad(risk, z)[0].abs().max()) < 1e-12
    labels = torch.arange(9) % 4
    assert torch.allclose(LogitAdjustedLoss(counts, 0.0)(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SymmetricCrossEntropyLoss(0.0, 0.0),
        lambda: SymmetricCrossEntropyLoss(-1.0),
        lambda: SymmetricCrossEntropyLoss(log_zero=0.0),
        lambda: BootstrapLoss(1.5),
        lambda: ForwardCorrectionLoss(torch.eye(3))(torch.randn(2, 4), torch.arange(2)),
        lambda: ForwardCorrectionLoss(torch.ones(3, 3)),
        lambda: ForwardCorrectionLoss(torch.tensor([[1.0, 0.0], [1.0, 0.0]])),
        lambda: ForwardCorrectionLoss(torch.ones(2, 3) / 3),
        lambda: BackwardCorrectionLoss(torch.full((2, 2), 0.5)),
        lambda: LogitAdjustedLoss([3, 0]),
        lambda: LogitAdjustedLoss([3, 1])(torch.randn(2, 3), torch.arange(2)),
        lambda: LogitAdjustedLoss(tau=math.inf),
    ],
)
def test_bad_input(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]
