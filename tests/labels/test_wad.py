"""Exact checks of weight-aware distillation and of pools with unknown classes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.data import Batch, Data
from assay.labels import (
    WeightAwareDistillation,
    make_mismatch_pool,
    margin_weights,
    mismatch_errors,
    prototype_scores,
)
from assay.labels.semi_supervised import TRUTH
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded
from assay.training import State, Supervised


def same(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    return x


def _data(n: int = 60, classes: int = 3, seed: int = 0) -> Data:
    """Points around a direction for each class."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = (F.one_hot(y, 6).float() + 0.3 * torch.rand(n, 6, generator=g)) / 1.3
    return Data(x, y, tuple(map(str, range(classes))), fields={TRUTH: y})


def _student() -> nn.Module:
    with seeded(0, "student"):
        return MLP((6,), 3, (16,))


def test_scores_are_the_nearest_or_the_mean_cosine_by_class() -> None:
    g = torch.Generator().manual_seed(0)
    z, members = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (300, 12))
    y = torch.tensor([0, 1, 2, 2] * 3)
    nearest, mean = (prototype_scores(z, members, y, 3, how) for how in ("max", "mean"))
    for i in (0, 17, 299):
        for k in range(3):
            cosine = [float(F.cosine_similarity(z[i], m, dim=0)) for m, c in zip(members, y, strict=True) if c == k]
            assert float(nearest[i, k]) == pytest.approx(max(cosine))
            assert float(mean[i, k]) == pytest.approx(sum(cosine) / len(cosine))
    assert torch.allclose(prototype_scores(3 * z, members / 7, y, 3), nearest)


@given(st.integers(0, 1000), st.integers(2, 9))
def test_the_weight_is_the_papers_product(seed: int, k: int) -> None:
    scores = 2 * torch.rand(20, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    pseudo, weight = margin_weights(scores)
    assert torch.equal(pseudo, scores.argmax(1))
    assert weight.min() >= 0
    assert weight.max() <= 2
    for row, w in zip(scores.tolist(), weight.tolist(), strict=True):
        second, first = sorted(row)[-2:]
        if first > 1e-3:
            assert w == pytest.approx(first * (1 - second / first), abs=1e-7)


def test_promotion_decays_by_the_square() -> None:
    shares = [WeightAwareDistillation().promotion(i) for i in range(1, 7)]
    assert shares == pytest.approx([0.064, 0.036, 0.016, 0.004, 0.0, 0.0])


def test_the_students_loss_written_out() -> None:
    data, student, method = _data(), _student(), WeightAwareDistillation(weak=same, mu=2)
    pseudo, weight = torch.arange(60) % 3, torch.rand(60, generator=torch.Generator().manual_seed(2))
    state, batch = State(0, data, 10), data.batch(torch.arange(8))
    rows = method.drawn(data, batch, state).rows
    assert len(rows) == 16
    each = F.cross_entropy(student(data.x[rows]), pseudo[rows], reduction="none")
    expected = F.cross_entropy(student(batch.x), batch.y) + (weight[rows] * each).mean()
    assert torch.allclose(method.objective_of(data, pseudo, weight, student, batch, state), expected)


def test_rounds_promote_the_samples_of_least_loss_out_of_the_pool() -> None:
    data = _data(160)
    labelled, pool = data[:30], data[30:]
    seen: list[int] = []

    class Watched(WeightAwareDistillation):
        def reliable(self, model: nn.Module, pool: Data, pseudo: torch.Tensor, i: int) -> torch.Tensor:
            rows = super().reliable(model, pool, pseudo, i)
            with torch.no_grad():
                losses = F.cross_entropy(model(pool.x), pseudo, reduction="none")
            rest = torch.ones(len(pool), dtype=torch.bool)
            rest[rows] = False
            assert len(rows) == (int(0.125 * len(pool)) if i == 1 else 0)
            assert len(rows) == 0 or losses[rows].max() <= losses[rest].min()
            seen.append(len(pool))
            return rows

    method = Watched(alpha=0.5, rounds=2, steps=3, weak=same)
    found = method.distil(_student(), labelled, seed=0, unlabelled=pool)
    promoted = [r.promoted for r in found.rounds]
    assert seen == [130, 130 - 16, 130 - 16]
    assert [len(p) for p in promoted] == [16, 0, 0]
    assert not torch.isin(found.rounds[1].index, promoted[0]).any()
    assert [len(r.pseudo) for r in found.rounds] == seen


def test_promoted_samples_are_members_of_their_class() -> None:
    data = _data(160)
    sizes: list[int] = []

    class Watched(WeightAwareDistillation):
        def objective_of(self, pool: Data, *rest: object) -> torch.Tensor:
            state = rest[-1]
            assert isinstance(state, State)
            sizes.append(len(state.data))
            return super().objective_of(pool, *rest)  # type: ignore[arg-type]

    Watched(alpha=0.5, rounds=2, steps=1, weak=same).fit(_student(), data[:30], seed=0, unlabelled=data[30:])
    assert sizes == [30, 46, 46]


def test_unit_and_student_weights() -> None:
    data, student = _data(), _student()
    kinds = {w: WeightAwareDistillation(weights=w) for w in ("margin", "unit", "student")}  # type: ignore[arg-type]
    found = {w: m.knowledge(student, None, data, data, 0) for w, m in kinds.items()}
    assert all(torch.equal(p, data.y) for p, _ in found.values())
    assert torch.equal(found["unit"][1], torch.ones(60))
    with torch.no_grad():
        p = student(data.x).softmax(1)
    assert torch.allclose(found["student"][1], p.gather(1, data.y[:, None])[:, 0])
    assert torch.allclose(found["margin"][1], margin_weights(prototype_scores(data.x, data.x, data.y, 3))[1])


def test_the_teacher_and_its_view_are_what_is_compared() -> None:
    data, student, teacher = _data(), _student(), nn.Linear(6, 2)
    method = WeightAwareDistillation()
    _, weight = method.knowledge(student, teacher, data, data, 0)
    with torch.no_grad():
        z = teacher(data.x)
    assert torch.allclose(weight, margin_weights(prototype_scores(z, z, data.y, 3))[1], atol=1e-6)

    def noisy(x: torch.Tensor, draws: Draws) -> torch.Tensor:
        return x + draws.normal(6)

    viewed = WeightAwareDistillation(teacher_view=noisy)
    first, again, other = (viewed.knowledge(student, teacher, data, data, s)[1] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_errors_of_weighted_pseudo_labels() -> None:
    truth = torch.tensor([0, 0, 1, -1, -1])
    pseudo = torch.tensor([0, 1, 1, 0, 1])
    weight = torch.tensor([3.0, 1.0, 2.0, 0.5, 1.5])
    assert mismatch_errors(pseudo, weight, truth) == pytest.approx((1 / 6, 2 / 8))
    assert mismatch_errors(pseudo, torch.ones(5), truth) == pytest.approx((1 / 3, 2 / 5))
    assert math.isnan(mismatch_errors(pseudo, torch.zeros(5), truth)[1])
    with pytest.raises(InputError, match="weights"):
        mismatch_errors(pseudo, -weight, truth)


def test_without_pool_weights_it_is_supervised_on_the_labelled() -> None:
    data = _data(60)

    class Nothing(WeightAwareDistillation):
        def weigh(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return scores.argmax(1), torch.zeros(len(scores))

    plan = {"steps": 5, "lr": 1e-3, "batch_size": 10, "schedule": "constant"}
    own: list[int] = []

    class Seeded(Nothing):
        def knowledge(self, *args: object) -> tuple[torch.Tensor, torch.Tensor]:
            own.append(args[-1])  # type: ignore[arg-type]
            return super().knowledge(*args)  # type: ignore[arg-type]

    found = Seeded(alpha=0.0, rounds=1, weak=same, **plan).fit(_student(), data[:30], seed=0, unlabelled=data[30:])
    expected = _student()
    for seed in own:
        expected = Supervised(**plan).fit(expected, data[:30], seed=seed)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@given(st.integers(0, 500), st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8]), st.booleans())
def test_the_pool_has_the_share_of_unknown_samples(seed: int, mismatch: float, balanced: bool) -> None:
    y = torch.arange(1000) % 10
    known, rest = make_mismatch_pool(y, (3, 5), 40 if balanced else 60, mismatch, seed=seed, balanced=balanced)
    if balanced:
        assert torch.bincount(y[known]).tolist() == [0, 0, 0, 20, 0, 20]
    targets = torch.isin(y[rest], torch.tensor([3, 5]))
    total = 200 - len(known)
    assert torch.isin(y[known], torch.tensor([3, 5])).all()
    assert int(targets.sum()) == total
    assert int((~targets).sum()) == math.ceil(round(mismatch * total / (1 - mismatch), 6))
    assert not torch.isin(known, rest).any()
    assert len(rest.unique()) == len(rest)


@pytest.mark.parametrize(
    ("targets", "labels", "mismatch", "balanced"),
    [((3,), 10, 0.2, False), ((3, 5), 10, 1.0, False), ((3, 5), 11, 0.2, True), ((3, 5), 400, 0.2, False),
     ((3, 5), 10, 0.9, False), ((3, 5), 1, 0.2, False), ((3, 5), -3, 0.2, False), ((3, 5), -2, 0.2, True)],
)  # fmt: skip
def test_pools_that_cannot_be_drawn(targets: tuple[int, ...], labels: int, mismatch: float, balanced: bool) -> None:
    with pytest.raises(InputError, match="make_mismatch_pool"):
        make_mismatch_pool(torch.arange(1000) % 10, targets, labels, mismatch, seed=0, balanced=balanced)


def test_bad_input() -> None:
    z, y = torch.rand(6, 3) + 0.1, torch.tensor([0, 1, 0, 1, 0, 1])
    for bad in (
        lambda: prototype_scores(z, z, torch.zeros(6, dtype=torch.int64), 2),
        lambda: prototype_scores(z, z, torch.zeros(6, dtype=torch.int64), 1),
        lambda: prototype_scores(z, z[:, :2], y, 2),
        lambda: prototype_scores(0 * z, z, y, 2),
        lambda: prototype_scores(z, z, y, 2, "median"),  # type: ignore[arg-type]
        lambda: margin_weights(z[:, :1]),
        lambda: WeightAwareDistillation(alpha=1.5),
        lambda: WeightAwareDistillation(rounds=0),
        lambda: WeightAwareDistillation(weights="other"),  # type: ignore[arg-type]
        lambda: WeightAwareDistillation(steps=1).fit(_student(), _data()[:2], seed=0, unlabelled=_data()),
    ):
        with pytest.raises(InputError):
            bad()


def test_a_batch_is_used_whole() -> None:
    batch = Batch(torch.rand(4, 6), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    drawn = WeightAwareDistillation(mu=3).drawn(_data(), batch, State(0, _data(), 1))
    assert len(drawn.rows.unique()) == 12
