"""Trainers for wrong labels: what each step learns from, and what each reduces to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.labels import (
    GCE,
    BackwardCorrection,
    Bootstrap,
    CoTeaching,
    CoTeachingPlus,
    CutMix,
    ForwardCorrection,
    LabelSmoothing,
    LogitAdjustment,
    Mixup,
    NestedCoTeaching,
    SymmetricCE,
    estimate_transition,
)
from assay.losses import ForwardCorrectionLoss
from assay.methods import from_text
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, seeded
from assay.training import State, Supervised, fit
from assay.training.engine import Augment

TINY = {"steps": 5, "batch_size": 16}


def _data(n: int = 40, c: int = 3) -> Data:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 6, 6, generator=g), torch.randint(c, (n,), generator=g)
    return Data(x, y, tuple("abcdef"[:c]), index=5 * torch.arange(n) + 2)


def _net() -> nn.Module:
    with seeded(0, "robust"):
        return MLP((1, 6, 6), 3, (8,))


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_estimate_transition_from_sure_samples() -> None:
    t = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    posterior = torch.cat((torch.eye(3), torch.rand(97, 3, generator=torch.Generator().manual_seed(1)))).double()
    posterior /= posterior.sum(1, keepdim=True)
    assert torch.allclose(estimate_transition(posterior @ t, 100.0)[[0, 1]], t[[0, 1]])
    sure = t[torch.arange(300) % 3]
    assert torch.allclose(estimate_transition(sure[:, [0, 1, 2]], 97.0), t)
    outlier = torch.cat((sure, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)))
    assert torch.allclose(estimate_transition(outlier, 97.0), t)
    assert torch.equal(estimate_transition(outlier, 100.0)[0], outlier[-1])
    line = torch.linspace(0, 1, 101, dtype=torch.float64)
    found = [float(estimate_transition(torch.stack((line, 1 - line), 1), k)[0, 0]) for k in (29, 57, 58)]
    assert found == pytest.approx([0.29, 0.57, 0.58])


@pytest.mark.parametrize("augment", [None, lambda x, draws: x.flip(3)])
def test_correction_is_two_stages_from_the_same_weights(augment: Augment | None) -> None:
    data, net = _data(), _net()
    found = ForwardCorrection(**TINY).fit(net, data, seed=3, augment=augment)
    first = Supervised(**TINY).fit(net, data, seed=derive(3, "transition"), augment=augment)
    loss = ForwardCorrectionLoss(estimate_transition(predict(first, data.x).softmax(1)))
    plan = Supervised(**TINY).plan()
    assert _same(found, fit(net, data, lambda m, b, s: loss(m(b.x), b.y), plan, seed=3, augment=augment))


def test_backward_correction_inverts_equal_rows_by_its_prior() -> None:
    equal = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    loss = BackwardCorrection(prior=0.2).corrected(equal)
    assert torch.allclose(loss.inverse, 5 * torch.eye(3).double() - 4 * equal)
    with pytest.raises(InputError, match="inverse"):
        BackwardCorrection(prior=0.0).corrected(equal)


def test_mixup_is_cross_entropy_of_mixed_labels() -> None:
    data, net, method = _data(), _net(), Mixup(alpha=2.0)
    batch = data.batch(torch.arange(16))
    for step in range(4):
        state = State(5, data, 9, step=step)
        share, (_, partner) = method.share(state), method.partners(batch, state)
        assert 0 <= share <= 1
        one_hot = F.one_hot(batch.y, 3).float()
        logits = net(share * batch.x + (1 - share) * batch.x[partner])
        expected = F.cross_entropy(logits, share * one_hot + (1 - share) * one_hot[partner])
        assert torch.allclose(method.objective(net, batch, state), expected, atol=1e-6)


def test_cutmix_shares_labels_by_area() -> None:
    data, method = _data(), CutMix()
    x, other, seen = torch.zeros(2, 3, 6, 6), torch.ones(2, 3, 6, 6), set()
    for step in range(60):
        share = method.share(State(5, data, 9, step=step))
        out, left = method.mixed(x, other, share, State(5, data, 9, step=step))
        assert left == pytest.approx(1 - float(out.mean()), abs=1e-6)
        assert left >= share - 1e-9  # the box is cut off at the border
        assert torch.equal(out[0], out[1])
        seen.add(left)
        rows, columns = out[0, 0].amax(1), out[0, 0].amax(0)
        assert torch.equal(out[0, 0], rows[:, None] * columns)  # one box
    assert len(seen) > 6
    assert float(x.sum()) == 0
    with pytest.raises(InputError, match="images"):
        method.mixed(torch.zeros(2, 5), torch.zeros(2, 5), 0.5, State(5, data, 9))


def test_co_teaching_learns_from_what_the_other_finds_easy() -> None:
    g = torch.Generator().manual_seed(2)
    first, second = (torch.randn(10, 3, generator=g, requires_grad=True) for _ in range(2))
    y = torch.randint(3, (10,), generator=g)
    method = CoTeaching(forget_rate=0.4, ramp=2)
    assert [method.kept(e) for e in (0, 1, 2, 5)] == [1.0, 0.8, 0.6, 0.6]
    own, others = torch.autograd.grad(method.exchanged(first, second, y, 4), (first, second))
    losses = [F.cross_entropy(z.detach(), y, reduction="none") for z in (first, second)]
    for gradient, names in ((own, losses[1]), (others, losses[0])):
        taught = gradient.abs().sum(1) > 0
        assert set(taught.nonzero()[:, 0].tolist()) == set(names.topk(6, largest=False).indices.tolist())


@pytest.mark.parametrize(("rate", "n", "kept"), [(0.8, 10, 2), (0.9, 20, 2), (0.8, 100, 20), (0.3, 10, 7), (0.9, 3, 1)])
def test_co_teaching_keeps_the_share_that_is_asked_for(rate: float, n: int, kept: int) -> None:
    logits, y = torch.arange(2.0 * n).view(n, 2), torch.zeros(n, dtype=torch.int64)
    assert len(CoTeaching(forget_rate=rate).easy(logits, y, epoch=10)) == kept
    assert len(NestedCoTeaching().small_loss(logits, y, rate)) == kept


def test_co_teaching_that_forgets_nothing_is_plain_training() -> None:
    data, net = _data(), _net()
    assert _same(CoTeaching(forget_rate=0.0, **TINY).fit(net, data, seed=1), Supervised(**TINY).fit(net, data, seed=1))
    assert not _same(CoTeaching(forget_rate=0.5, ramp=1, epochs=3).fit(net, data, seed=1), net)


def test_co_teaching_plus_learns_from_disagreement() -> None:
    g = torch.Generator().manual_seed(2)
    first, second = (torch.randn(10, 3, generator=g, requires_grad=True) for _ in range(2))
    y, method = torch.randint(3, (10,), generator=g), CoTeachingPlus(forget_rate=0.4, ramp=2, warm=3)
    early = CoTeaching(forget_rate=0.4, ramp=2).exchanged(first, second, y, 2)
    assert torch.equal(method.exchanged(first, second, y, 2), early)
    (gradient,) = torch.autograd.grad(method.exchanged(first, second, y, 3), first)
    apart = first.argmax(1) != second.argmax(1)
    assert 0 < int((gradient.abs().sum(1) > 0).sum()) < int(apart.sum())
    assert not (gradient.abs().sum(1) > 0)[~apart].any()
    same = method.exchanged(first, first, y, 3)
    assert float(same.detach()) == 0
    assert not torch.autograd.grad(same, first)[0].any()


def test_logit_adjustment_takes_the_shares_of_the_given_labels() -> None:
    data = _data()
    counts = torch.bincount(data.y, minlength=3).double()
    logits = torch.randn(40, 3, dtype=torch.float64)
    expected = F.cross_entropy(logits + 2 * (counts / 40).log(), data.y)
    assert torch.allclose(LogitAdjustment(tau=2.0).loss(data)(logits, data.y), expected)


@pytest.mark.parametrize(
    "text",
    [
        "labels.GCE:q=0.5",
        "labels.SymmetricCE:alpha=1,log_zero=-6",
        "labels.Bootstrap:mode=hard,beta=0.7",
        "labels.ForwardCorrection:percentile=100",
        "labels.BackwardCorrection",
        "labels.LabelSmoothing:label_smoothing=0.2",
        "labels.Mixup:alpha=8",
        "labels.CutMix:alpha=0.5",
        "labels.LogitAdjustment:tau=0.5",
        "labels.CoTeaching:forget_rate=0.4",
        "labels.CoTeachingPlus:warm=3",
    ],
)
def test_each_repairs_by_name(text: str) -> None:
    method = from_text(f"{text}{',' if ':' in text else ':'}epochs=3")
    assert method.plain() == Supervised(epochs=3)
    assert callable(method.repair)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GCE(q=0.0),
        lambda: SymmetricCE(alpha=-1.0),
        lambda: Bootstrap(beta=2.0),
        lambda: Bootstrap(mode="firm"),  # type: ignore[arg-type]
        lambda: LabelSmoothing(label_smoothing=1.0),
        lambda: ForwardCorrection(percentile=101.0),
        lambda: BackwardCorrection(percentile=-1.0),
        lambda: BackwardCorrection(prior=1.1),
        lambda: LogitAdjustment(tau=-1.0),
        lambda: Mixup(alpha=0.0),
        lambda: CutMix(alpha=math.inf),
        lambda: CoTeaching(forget_rate=1.0),
        lambda: CoTeaching(ramp=0),
        lambda: CoTeachingPlus(warm=-1),
        lambda: estimate_transition(torch.rand(4, 3) + 1),
        lambda: estimate_transition(torch.eye(3), 101.0),
    ],
)
def test_bad_parameters(make: object) -> None:
    with pytest.raises(InputError, match=r"expected|unknown"):
        make()  # type: ignore[operator]
