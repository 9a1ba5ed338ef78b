"""Attacks against closed forms, shadow models, and the ROC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from assay.data import Data, load_data
from assay.nets import MLP
from assay.privacy import CalibratedLoss, ClassLoss, LiRA, LossThreshold, Reference, Shadows, train_shadows
from assay.privacy.base import logit_confidence, losses
from assay.privacy.roc import auc, curve, tpr_at
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Supervised

QUICK = Supervised(epochs=1, batch_size=16)


def nets(k: int) -> list[MLP]:
    with seeded(0, "nets"):
        return [MLP(hidden=(8,)) for _ in range(k)]


@pytest.fixture(scope="module")
def data() -> Data:
    return replace(load_data("digits:train")[:40], index=torch.arange(40) * 3 + 1)


@pytest.fixture(scope="module")
def shadows(data: Data) -> Shadows:
    rng = torch.Generator().manual_seed(0)
    seen = torch.rand(6, 40, generator=rng).argsort(0).argsort(0) < 3
    return Shadows(nets(6), data, seen)


def test_confidence_is_the_logit_of_the_probability(data: Data) -> None:
    (model,) = nets(1)
    p = predict(model, data.x).double().softmax(1).gather(1, data.y[:, None])[:, 0]
    torch.testing.assert_close(logit_confidence("", model, data, 256), (p / (1 - p)).log())
    with torch.no_grad():
        model.head.weight.mul_(1e4)
    assert torch.isfinite(logit_confidence("", model, data, 256)).all()


def test_loss_threshold_is_the_negative_loss(data: Data) -> None:
    (model,) = nets(1)
    expected = -F.cross_entropy(predict(model, data.x).double(), data.y, reduction="none")
    torch.testing.assert_close(LossThreshold().fit().score(model, data), expected)


def test_class_loss_subtracts_the_class_mean(data: Data) -> None:
    (model,) = nets(1)
    known = data[data.y != 4]
    score, loss = ClassLoss().fit(Reference(data=known)).score(model, data), losses("", model, data, 256)
    unseen = losses("", model, known, 256)
    for i in range(40):
        same = unseen[known.y == data.y[i]]
        usual = same.mean() if len(same) else unseen.mean()
        torch.testing.assert_close(score[i], usual - loss[i])
    assert (data.y == 4).any()


@pytest.mark.parametrize("variance", ["sample", "global"])
def test_lira_is_the_likelihood_ratio(variance: str, data: Data, shadows: Shadows) -> None:
    (target,) = nets(1)
    phi = logit_confidence("", target, data, 256).numpy()
    table = np.stack([logit_confidence("", m, data, 256).numpy() for m in shadows.models])
    online = LiRA(models=6, variance=variance).from_shadows(shadows).score(target, data).numpy()  # type: ignore[arg-type]
    offline = LiRA(models=6, online=False, variance=variance).from_shadows(shadows).score(target, data).numpy()  # type: ignore[arg-type]
    seen = shadows.seen.numpy()
    groups = {side: [table[seen[:, i] == side, i] for i in range(40)] for side in (True, False)}
    deviation = {
        side: [g.std(ddof=1) for g in values]
        if variance == "sample"
        else [np.mean([g.var(ddof=1) for g in values]) ** 0.5] * 40
        for side, values in groups.items()
    }
    for i in range(40):
        inside = norm(groups[True][i].mean(), deviation[True][i])
        outside = norm(groups[False][i].mean(), deviation[False][i])
        np.testing.assert_allclose(online[i], inside.logpdf(phi[i]) - outside.logpdf(phi[i]), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(norm.cdf(offline[i]), outside.cdf(phi[i]), rtol=1e-8, atol=1e-12)


def test_auto_variance_is_global_below_64_models(data: Data, shadows: Shadows) -> None:
    (target,) = nets(1)
    scores = {v: LiRA(variance=v).from_shadows(shadows).score(target, data) for v in ("auto", "global", "sample")}  # type: ignore[arg-type]
    assert scores["auto"].equal(scores["global"])
    assert not scores["auto"].allclose(scores["sample"])
    many = Shadows(nets(64), data, torch.arange(64)[:, None].expand(64, 40) % 2 == 0)
    assert LiRA().from_shadows(many).out_variance_ is None
    with pytest.raises(InputError, match="variance"):
        LiRA(variance="mine").from_shadows(shadows)  # type: ignore[arg-type]


def test_calibrated_loss_averages_models_that_did_not_see_the_sample(data: Data, shadows: Shadows) -> None:
    (target,) = nets(1)
    score = CalibratedLoss().from_shadows(shadows).score(target, data).numpy()
    table = np.stack([losses("", m, data, 256).numpy() for m in shadows.models])
    out = ~shadows.seen.numpy()
    expected = (table * out).sum(0) / out.sum(0) - losses("", target, data, 256).numpy()
    np.testing.assert_allclose(score, expected, rtol=1e-10)


def test_samples_outside_the_pool(data: Data, shadows: Shadows) -> None:
    (target,) = nets(1)
    stranger = replace(data[:5], index=torch.arange(5) + 1000)
    assert not shadows.membership(stranger.index).any()
    assert torch.isfinite(LiRA(online=False).from_shadows(shadows).score(target, stranger)).all()
    with pytest.raises(InputError, match="that saw them: 5 samples"):
        LiRA().from_shadows(shadows).score(target, stranger)


def test_shadows_train_on_what_they_say(data: Data) -> None:
    seen: list[set[int]] = []

    class Spy(Supervised):
        def fit(self, model, data, *, seed, **options):  # type: ignore[no-untyped-def]
            seen.append(set(data.index.tolist()))
            return super().fit(model, data, seed=seed, **options)

    (model,) = nets(1)
    made = train_shadows(Reference(data=data, model=model, recipe=Spy(epochs=1)), 4, seed=0)
    assert made.seen.sum(0).eq(2).all()
    for j, rows in enumerate(seen):
        assert rows == set(data.index[made.seen[j]].tolist())
    shuffled = data[torch.arange(40).flip(0)]
    other = train_shadows(Reference(data=shuffled, model=model, recipe=QUICK), 4, seed=0)
    assert other.membership(data.index).equal(made.membership(data.index))
    first = [m.state_dict()["head.weight"] for m in made.models]
    assert not first[0].equal(first[1])


def test_shadows_refuse(data: Data) -> None:
    (model,) = nets(1)
    full = Reference(data=data, model=model, recipe=QUICK)
    for reference, k, words in (
        (Reference(data=data), 4, "no model or no recipe"),
        (full, 3, "even"),
        (full, 0, "even"),
        (replace(full, data=replace(data, index=torch.zeros(40, dtype=torch.int64))), 4, "repeat"),
        (replace(full, data=data[:2]), 32, "expected more"),
    ):
        with pytest.raises(InputError, match=words):
            train_shadows(reference, k, seed=0)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
def test_roc_equals_sklearn(rows: list[tuple[int, bool]]) -> None:
    scores, member = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    if member.all() or not member.any():
        with pytest.raises(InputError, match="members and non-members"):
            curve(scores, member)
        return
    fpr, tpr = curve(scores, member)
    want_fpr, want_tpr, _ = roc_curve(member, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, want_fpr)
    np.testing.assert_allclose(tpr, want_tpr)
    metric, kept = auc("a", scores, member, np.arange(len(scores)), "how")
    assert metric.value == pytest.approx(roc_auc_score(member, scores))
    assert kept.statistic == "auroc"


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.2, 0.5]), st.integers(1, 50))
def test_tpr_is_the_best_within_the_false_positive_rate(seed: int, rate: float, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores, member = rng.integers(0, levels, 240).astype(float), np.repeat([True, False], 120)
    metric = tpr_at("t", scores, member, rate, "how")
    fpr, tpr = curve(scores, member)
    assert metric.value == pytest.approx(tpr[fpr <= rate + 1e-12].max())
    assert metric.low <= metric.value <= metric.high  # type: ignore[operator]


def test_tpr_that_cannot_be_resolved_is_not_given() -> None:
    def at(n: int, rate: float):  # type: ignore[no-untyped-def]
        return tpr_at("t", np.arange(2.0 * n), np.repeat([False, True], n), rate, "how")

    assert at(1000, 0.01).value == 1.0
    short = at(999, 0.01)
    assert short.value is None
    assert "at least 1000 needed" in short.how
    assert at(1000, 0.001).value is None
    with pytest.raises(InputError, match="fpr"):
        at(10, 1.0)
    with pytest.raises(InputError, match="finite"):
        curve(np.array([np.nan, 1.0]), np.array([True, False]))
