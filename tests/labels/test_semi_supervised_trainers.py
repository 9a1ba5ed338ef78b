"""Exact checks of the semi-supervised trainers: thresholds, targets and losses against the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Batch, Data
from assay.labels import FixMatch, FlexMatch, FreeMatch, MixMatch, ShrinkMatch
from assay.labels.fixmatch import aligned
from assay.labels.freematch import fairness
from assay.labels.semi_supervised import Unlabelled
from assay.labels.shrinkmatch import WithAuxiliary, auxiliary_head
from assay.losses import ShrinkLoss
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded
from assay.training import State

C, N, B = 5, 6, 8


def same(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    return x


def halved(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    return x / 2


VIEWS = {"weak": same, "strong": halved}


def state() -> State:
    x = torch.zeros(N, 4)
    return State(0, Data(x, torch.zeros(N, dtype=torch.int64), tuple("abcde")), 10)


def batches(seed: int = 0) -> tuple[Batch, Unlabelled]:
    g = torch.Generator().manual_seed(seed)
    labelled = Batch(torch.rand(N, 4, generator=g), torch.arange(N) % C, torch.arange(N))
    rows = torch.randperm(20, generator=g)[:B]
    return labelled, Unlabelled(torch.rand(B, 4, generator=g).square(), rows, rows, 20)


def model(scale: float = 1.0) -> MLP:
    with seeded(0, "model"):
        net = MLP((4,), C, (7,))
    with torch.no_grad():
        net.head.weight *= scale
        net.head.bias.zero_()
    return net


def probs(seed: int, rows: int = B) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(rows, C, generator=g)).softmax(1)


def test_fixmatch_loss_written_out() -> None:
    net, (known, unknown) = model(100.0), batches()
    method = FixMatch(tau=0.8, weight=2.0, **VIEWS)
    q = net(unknown.x).softmax(1)
    expected = F.cross_entropy(net(known.x), known.y)
    count = 0
    for i in range(B):
        if q[i].max() >= 0.8:
            expected = expected - 2.0 / B * net(unknown.x[i : i + 1] / 2).log_softmax(1)[0, q[i].argmax()]
            count += 1
    assert 0 < count < B
    assert torch.allclose(method.loss(net, known, unknown, state()), expected)


def test_soft_targets() -> None:
    logits, q = torch.randn(B, C), probs(0)
    soft = FixMatch(soft=True).consistency(logits, q)
    assert torch.allclose(soft, -(q * logits.log_softmax(1)).sum(1))
    assert torch.allclose(FixMatch().consistency(logits, q), F.cross_entropy(logits, q.argmax(1), reduction="none"))


def test_alignment_divides_by_the_mean_of_the_last_32_batches() -> None:
    kept, now = state(), [probs(s) for s in range(40)]
    for q in now:
        found = aligned(q, kept)
    mean = torch.stack([q.mean(0) for q in now[-32:]]).mean(0)
    expected = now[-1] / mean
    assert torch.allclose(found, expected / expected.sum(1, keepdim=True), atol=1e-6)


def test_alignment_of_one_hot_predictions_stays_finite() -> None:
    q = torch.eye(C)[torch.zeros(B, dtype=torch.int64)]
    assert torch.allclose(aligned(q, state()), q)


def test_flexmatch_thresholds_follow_the_counts() -> None:
    method, kept, unknown = FlexMatch(tau=0.9), state(), batches()[1]
    q = torch.full((B, C), 0.01)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    q[torch.arange(B), labels] = torch.tensor([0.96, 0.96, 0.96, 0.96, 0.96, 0.96, 0.96, 0.5])
    assert method.certain(q, unknown, kept).all()  # nothing is learnt yet: every threshold is 0
    latest = kept.memory["flexmatch"]
    assert latest[unknown.rows].tolist() == [0, 0, 0, 0, 1, 1, 2, -1]
    beta = torch.tensor([4, 2, 1, 0, 0]) / 13  # thirteen of twenty have no certain prediction
    assert torch.allclose(method.status(latest, C), beta)
    assert torch.allclose(FlexMatch(warmup=False).status(latest, C), torch.tensor([4, 2, 1, 0, 0]) / 4)
    threshold = 0.9 * beta / (2 - beta)
    low = torch.full((B, C), 0.0)
    low[torch.arange(B), torch.arange(B) % C] = threshold[torch.arange(B) % C] + torch.tensor([1e-3, -1e-3] * 4)
    expected = low.max(1).values >= threshold[low.argmax(1)]
    assert torch.equal(method.certain(low, unknown, kept), expected)


def test_freematch_thresholds_are_running_averages() -> None:
    method, kept, unknown = FreeMatch(decay=0.9), state(), batches()[1]
    t, p, h = 1 / C, torch.full((C,), 1 / C), torch.full((C,), 1 / C)
    for seed in range(4):
        q = probs(seed)
        found = method.certain(q, unknown, kept)
        t = 0.9 * t + 0.1 * float(q.max(1).values.mean())
        p = 0.9 * p + 0.1 * q.mean(0)
        h = 0.9 * h + 0.1 * torch.bincount(q.argmax(1), minlength=C) / B
        assert torch.equal(found, q.max(1).values >= (t * p / p.max())[q.argmax(1)])
    assert torch.allclose(kept.memory["freematch/prediction"], p)
    assert torch.allclose(kept.memory["freematch/share"], h)


def test_fairness_written_out() -> None:
    logits = torch.randn(40, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, h = torch.rand(C, dtype=torch.float64) + 0.1, torch.rand(C, dtype=torch.float64) + 0.1
    here = logits.softmax(1).mean(0) / (torch.bincount(logits.argmax(1), minlength=C) / 40)
    there = p / h
    expected = (there / there.sum() * (here / here.sum()).log()).sum()
    assert torch.allclose(fairness(logits, p, h), expected)
    # A prediction in proportion to the running ratio is where the cross-entropy is the entropy.
    assert float(fairness(logits, p, h)) < 0


def test_freematch_without_certain_samples_adds_nothing() -> None:
    method, (_, unknown) = FreeMatch(), batches()
    none = torch.zeros(B, dtype=torch.bool)
    logits = torch.randn(B, C)
    assert float(method.further(probs(0), none, logits, logits, unknown, state())) == 0


def test_mixmatch_guess_and_ramp() -> None:
    logits = torch.randn(2, B, C)
    mean = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    method = MixMatch(temperature=0.5, rampup=100)
    assert torch.allclose(method.guess(logits), mean**2 / (mean**2).sum(1, keepdim=True))
    assert [method.risen(s) for s in (0, 50, 100, 200)] == [0, 37.5, 75, 75]
    assert MixMatch(rampup=0).risen(0) == 75


def test_mixmatch_mixes_towards_the_first_and_inputs_as_targets() -> None:
    x = torch.eye(B)
    mixed, target = MixMatch().mixed(x, x, state())
    assert torch.equal(mixed, target)
    assert torch.allclose(mixed.sum(1), torch.ones(B))
    assert (mixed.diagonal() >= 0.5).all()


def test_mixmatch_loss_without_mixing_written_out() -> None:
    class Plain(MixMatch):
        def mixed(self, x: torch.Tensor, target: torch.Tensor, state: State) -> tuple[torch.Tensor, torch.Tensor]:
            return x, target

    net, (known, unknown) = model(), batches()
    method = Plain(weak=same, rampup=0, weight=3.0)
    q = net(unknown.x).softmax(1)
    sharp = q**2 / (q**2).sum(1, keepdim=True)
    expected = F.cross_entropy(net(known.x), known.y) + 3.0 * (q - sharp).square().sum() / (B * C)
    assert torch.allclose(method.loss(net, known, unknown, state()), expected, atol=1e-6)


def _shrinking(**options: object) -> tuple[ShrinkMatch, WithAuxiliary]:
    method = ShrinkMatch(align=False, **VIEWS, **options)  # type: ignore[arg-type]
    start = method.start(model(100.0), state().data, seed=3)
    assert isinstance(start, WithAuxiliary)
    return method, start.eval()


def test_shrinkmatch_is_fixmatch_and_the_shrunk_loss_of_the_auxiliary_head() -> None:
    known, unknown = batches()
    method, net = _shrinking()
    kept = state()
    found = method.loss(net, known, unknown, kept)
    base = FixMatch(soft=True, **VIEWS).loss(net.model, known, unknown, state())
    q = net.model(unknown.x).softmax(1).detach()
    share = (q.max(1).values >= 0.95).float().mean()
    extra = ShrinkLoss()(net.auxiliary(net.model.body(unknown.x / 2)), q)
    assert 0 < float(share) < 1
    assert torch.allclose(found, base + share * extra, atol=1e-6)
    main = ShrinkMatch(align=False, head="main", **VIEWS).loss(net, known, unknown, state())
    assert torch.allclose(main, base + share * ShrinkLoss()(net.model(unknown.x / 2), q), atol=1e-6)
    assert {"uncertain", "shrunk", "removed"} <= {k for row in kept.log for k in row}


def test_the_auxiliary_head_has_the_type_of_the_model() -> None:
    net = ShrinkMatch(**VIEWS).start(model().double(), state().data, seed=3)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    outputs, extra = net.both(torch.rand(6, 4, dtype=torch.float64), 3)
    assert (outputs.dtype, extra.dtype) == (torch.float64, torch.float64)


def test_a_last_batch_of_one_trains_the_auxiliary_head() -> None:
    x = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    method = ShrinkMatch(epochs=1, batch_size=8, mu=1, **VIEWS)  # type: ignore[arg-type]
    found = method.fit(model(), Data(x, torch.arange(9) % C, tuple("abcde")), seed=0)
    assert torch.isfinite(found(x)).all()


def test_classes_outside_the_labelled_ones_count_as_neither_right_nor_removed() -> None:
    method, (known, unknown) = ShrinkMatch(align=False, tau=0.7, **VIEWS), batches()  # type: ignore[arg-type]
    logged = []
    for truth in (torch.full((B,), -1), torch.arange(B) % C):
        kept = state()
        method.loss(method.start(model(6.0), kept.data, seed=1), known, replace(unknown, truth=truth), kept)
        logged.append({key: value for row in kept.log for key, value in row.items()})
    foreign, usual = logged
    assert [foreign[key] for key in ("certain_right", "uncertain_right", "shrunk_right", "contained")] == [0] * 4
    assert foreign["shrunk"] == usual["shrunk"] > 0
    assert usual["contained"] > 0


def test_without_its_term_shrinkmatch_trains_as_fixmatch() -> None:
    class Silent(ShrinkMatch):
        def stage(self, share: torch.Tensor, state: State) -> torch.Tensor:
            return 0 * share

    x = torch.rand(24, 4, generator=torch.Generator().manual_seed(0))
    data = Data(x, torch.arange(24) % C, tuple("abcde"))
    plan = {"steps": 4, "batch_size": 8, "mu": 2, "optimizer": "sgd", **VIEWS}
    first, second = (
        method.fit(model(), data, seed=0)
        for method in (FixMatch(soft=True, align=True, **plan), Silent(**plan))  # type: ignore[arg-type]
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_stage_weight_averages_and_may_begin_anew() -> None:
    for again in (False, True):
        method, kept = ShrinkMatch(decay=0.5, reset_each_epoch=again), state()
        shares = []
        for step, share in ((0, 0.2), (1, 0.6), (1024, 1.0)):
            kept.step = step
            shares.append(float(method.stage(torch.tensor(share), kept)))
        assert shares == pytest.approx([0.2, 0.4, 1.0 if again else 0.7])


def test_the_auxiliary_head() -> None:
    head = auxiliary_head(64, 10)
    widths = [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]
    assert widths == [(64, 16), (16, 16), (16, 10)]
    assert [m.negative_slope for m in head if isinstance(m, nn.LeakyReLU)] == [0.1, 0.1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixMatch(tau=1.0),
        lambda: FixMatch(weight=-1.0),
        lambda: FreeMatch(decay=1.0),
        lambda: MixMatch(temperature=0.0),
        lambda: ShrinkMatch(head="other"),  # type: ignore[arg-type]
        lambda: ShrinkMatch(decay=1.0),
        lambda: ShrinkMatch(layer="body").start(model(), state().data, 0),
    ],
)
def test_bad_options(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
