"""Contrastive losses: gradients and limits of the paper, SimCLR's loss, the negatives of each mode."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.losses import HardContrastive, InfoNCE, SimpleContrastive, SupConLoss
from assay.losses.contrastive import ContrastiveLoss, hardest
from assay.papers.contrastive_temperature import identities
from assay.represent import info_nce
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


A, B, Q = draw("a", 12, 4), draw("b", 12, 4), draw("q", 20, 4)


def test_identities_hold_and_a_temperature_outside_breaks_them() -> None:
    bounds = {"gradient": 1e-10, "slope": 1e-5, "triplet": 1e-2, "even": 0.01, "nt_xent": 1e-10}
    real, sham = identities(0), identities(0, "outer-temperature")
    assert all(real[name] <= bound for name, bound in bounds.items())
    assert sham["gradient"] > 0.01
    assert sham["triplet"] > 0.1


def test_batch_is_the_functions_loss_and_views_the_supervised_one() -> None:
    assert float(InfoNCE(0.2)(A, B)) == pytest.approx(float(info_nce(A, B, 0.2)), rel=1e-12)
    both = float(info_nce(A, B, 0.2) + info_nce(B, A, 0.2)) / 2
    assert float(InfoNCE(0.2, symmetric=True)(A, B)) == pytest.approx(both, rel=1e-12)
    pairs = SupConLoss(0.2)(torch.cat((A, B)), torch.arange(12).repeat(2))
    assert float(InfoNCE(0.2, "views", symmetric=True)(A, B)) == pytest.approx(float(pairs), rel=1e-12)


def test_the_queue_holds_the_negatives() -> None:
    unit = [F.normalize(z, dim=1) for z in (A, B, Q)]
    positive, negative = (unit[0] * unit[1]).sum(1), unit[0] @ unit[2].T
    expected = (torch.cat((positive[:, None], negative), 1) / 0.5).logsumexp(1) - positive / 0.5
    assert float(InfoNCE(0.5, "queue")(A, B, Q)) == pytest.approx(float(expected.mean()))
    assert float(InfoNCE(0.5, "queue", scale_by_tau=True)(A, B, Q)) == pytest.approx(float(expected.mean()) / 2)
    raw = SimpleContrastive(0.5, negatives="queue", normalize=False)(A, B, Q)
    assert float(raw) == pytest.approx(float((0.5 * (A @ Q.T).sum(1) - (A * B).sum(1)).mean()))


def test_the_share_of_hardest_negatives_is_the_decimal_one() -> None:
    negative = draw("negatives", 2, 100)
    assert [hardest(negative, q).shape[1] for q in (0.07, 0.55, 1e-12, 1.0)] == [7, 55, 1, 100]
    assert hardest(negative, 0.071).shape[1] == 8


def test_only_the_hardest_negatives_get_a_gradient() -> None:
    p, s = draw("p", 5), draw("s", 5, 11).requires_grad_()
    for loss in (HardContrastive(0.5, 0.25), SimpleContrastive(1.0, 0.25)):
        (gradient,) = torch.autograd.grad(loss.of_scores(p, s).sum(), s)
        kept = s >= s.quantile(0.75, dim=1, keepdim=True)
        assert torch.equal(gradient > 0, kept)
        assert (kept.sum(1) == math.ceil(0.25 * 11)).all()
    every = HardContrastive(0.5, 1.0).of_scores(p, s)
    assert torch.allclose(every, InfoNCE(0.5).of_scores(p, s))


def test_a_high_temperature_is_the_simple_loss() -> None:
    p, s = draw("p", 5).tanh(), draw("s", 5, 9).tanh()
    tau, m = 1e4, 10
    scaled = tau * (InfoNCE(tau).of_scores(p, s) - math.log(m))
    simple = SimpleContrastive(1 / (m - 1)).of_scores(p, s) * (m - 1) / m
    assert torch.allclose(scaled, simple, atol=1e-3)


def test_low_temperatures_are_stable() -> None:
    loss = InfoNCE(0.01)(A.float().requires_grad_(), B.float())
    assert torch.isfinite(loss)


@pytest.mark.parametrize("loss", [InfoNCE(0.01), HardContrastive(0.01, 0.4), SimpleContrastive(9e4)])
def test_half_precision_is_computed_in_float32(loss: ContrastiveLoss) -> None:
    for dtype in (torch.half, torch.bfloat16):
        a, b = A.to(dtype), B.to(dtype)
        assert torch.equal(loss(a, b), loss(a.float(), b.float()))
    assert torch.isfinite(loss(A.half(), B.half()))
    queue = InfoNCE(0.1, "queue")
    assert torch.equal(queue(A.float(), B.float(), Q), queue(A.float(), B.float(), Q.float()))


def test_gradients_are_right() -> None:
    for loss in (InfoNCE(0.3, "views"), HardContrastive(0.3, 0.4), SimpleContrastive(0.2)):
        assert torch.autograd.gradcheck(loss, (A[:5].clone().requires_grad_(), B[:5].clone().requires_grad_()))


def test_bad_input() -> None:
    for call in (
        lambda: InfoNCE(0.0),
        lambda: InfoNCE(negatives="all"),  # type: ignore[arg-type]
        lambda: InfoNCE()(A[:1], B[:1]),
        lambda: InfoNCE()(A, B[:3]),
        lambda: InfoNCE()(A * 0, B),
        lambda: InfoNCE()(A * torch.nan, B),
        lambda: InfoNCE()(A, B, Q),
        lambda: InfoNCE(negatives="queue")(A, B),
        lambda: InfoNCE(negatives="queue")(A, B, Q[:, :2]),
        lambda: HardContrastive(quantile=0.0),
        lambda: SimpleContrastive(lam=-1.0),
        lambda: SimpleContrastive(quantile=2.0),
    ):
        with pytest.raises(InputError):
            call()
