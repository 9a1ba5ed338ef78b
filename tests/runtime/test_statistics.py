from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from assay.runtime import statistics as S
from assay.runtime.metric import measured

rng = np.random.default_rng(0)


def test_wilson_matches_the_closed_form() -> None:
    low, high = S.wilson(7, 10)
    z = stats.norm.ppf(0.975)
    centre, half = (0.7 + z * z / 20) / (1 + z * z / 10), z / (1 + z * z / 10) * np.sqrt(0.7 * 0.3 / 10 + z * z / 400)
    assert (low, high) == pytest.approx((centre - half, centre + half))


def test_wilson_covers() -> None:
    p, n = 0.9, 60
    hits = [low <= p <= high for low, high in (S.wilson(int(k), n) for k in rng.binomial(n, p, 500))]
    assert np.mean(hits) > 0.92


def test_auroc_equals_scikit_learn_with_ties_and_weights() -> None:
    score, label = rng.integers(0, 8, 200), rng.integers(0, 2, 200)
    weights = rng.integers(0, 4, (5, 200)).astype(float)
    ours = S.auroc(np.stack([score, label], 1), weights)
    theirs = [roc_auc_score(label, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_class_statistics_equal_scikit_learn() -> None:
    y, predicted = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    values = np.stack([(y == predicted).astype(float), y], 1)
    assert S.point("balanced", values) == pytest.approx(balanced_accuracy_score(y, predicted))
    assert S.point("worst_class", values) == pytest.approx(min((predicted[y == c] == c).mean() for c in range(5)))


def test_ece_of_a_hand_worked_example() -> None:
    values = np.array([[0.95, 1], [0.95, 0], [0.55, 1], [0.55, 1]])
    assert S.point("ece", values) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)


@given(st.integers(20, 200), st.integers(0, 10**6))
def test_statistics_are_invariant_to_the_order_of_samples(n: int, seed: int) -> None:
    r = np.random.default_rng(seed)
    values = np.stack([r.random(n), r.integers(0, 2, n)], 1)
    values[0, 1], values[1, 1] = 0, 1
    order = r.permutation(n)
    for name in ("mean", "ece", "adaptive_ece", "auroc"):
        assert S.point(name, values) == pytest.approx(S.point(name, values[order]))


@pytest.mark.parametrize("name", ["mean", "ece", "adaptive_ece", "auroc", "worst_class", "balanced", "ratio", "gap"])
def test_a_weight_of_two_is_the_sample_twice(name: str) -> None:
    values = np.stack([rng.random(40), rng.integers(0, 2, 40)], 1)
    weights = rng.integers(0, 3, 40)
    doubled = np.repeat(values, weights, axis=0)
    assert S.STATISTICS[name](values, weights[None].astype(float))[0] == pytest.approx(S.point(name, doubled))


def test_adaptive_ece_does_not_depend_on_the_order_of_ties() -> None:
    values = np.stack([np.full(150, 0.9), np.arange(150) < 135], 1).astype(float)
    assert S.point("adaptive_ece", values) == pytest.approx(0, abs=1e-12)
    assert S.point("adaptive_ece", values[::-1]) == pytest.approx(0, abs=1e-12)
    for k in range(20):
        r = np.random.default_rng(k)
        tied = np.stack([r.integers(1, 6, 80) / 5, r.integers(0, 2, 80)], 1)
        assert S.point("adaptive_ece", tied) == pytest.approx(S.point("adaptive_ece", tied[r.permutation(80)]))


def test_resamples_without_one_of_two_sides_are_left_out() -> None:
    perfect = np.stack([np.arange(60.0), np.arange(60) == 59], 1)
    assert (S.point("auroc", perfect), *S.bootstrap("auroc", perfect)) == (1, 1, 1)
    level = np.stack([np.full(60, 0.9), np.arange(60) == 0], 1)
    assert S.bootstrap("gap", level) == pytest.approx((0, 0))
    rare = np.stack([np.full(60, 2.0) * (np.arange(60) == 0), np.arange(60) == 0], 1)
    assert S.bootstrap("ratio", rare) == (2, 2)
    for name in ("auroc", "gap", "ratio"):
        assert np.isnan(S.point(name, np.zeros((5, 2))))
        assert np.isnan(S.bootstrap(name, np.zeros((5, 2)))).all()
    worse, better = np.stack([np.zeros(60), perfect[:, 1]], 1), perfect
    assert S.paired("auroc", worse, better)[:3] == (0.5, 0.5, 0.5)


def test_the_interval_of_the_lowest_rate_covers_it() -> None:
    r, held = np.random.default_rng(0), 0
    for _ in range(200):
        values = np.stack([r.random(1000) < 0.8, np.repeat(np.arange(50), 20)], 1).astype(float)
        metric = measured("worst", values, np.arange(1000), statistic="worst_class")[0]
        assert metric.low is not None
        assert metric.value is not None
        assert metric.high is not None
        assert metric.low <= metric.value <= metric.high
        held += metric.low <= 0.8 <= metric.high
    assert held >= 0.95 * 200
    one = np.stack([np.arange(60) < 48, np.zeros(60)], 1).astype(float)
    exact = stats.binomtest(48, 60).proportion_ci(method="exact")
    assert S.worst_rate(one) == pytest.approx((exact.low, exact.high))


def test_the_p_value_of_rates_is_exact() -> None:
    before, after = np.zeros((20, 1)), np.zeros((20, 1))
    after[:5] = 1
    assert S.paired("mean", before, after)[3] == pytest.approx(0.0625)
    assert S.paired("mean", before, before)[3] == 1


def test_paired_intervals_are_narrower_than_unpaired_and_cover_the_difference() -> None:
    covered = []
    for k in range(60):
        r = np.random.default_rng(k)
        base = r.normal(size=200)
        before, after = base, base + 0.1 + 0.2 * r.normal(size=200)
        d, low, high, _ = S.paired("mean", before[:, None], after[:, None])
        covered.append(low <= 0.1 <= high)
        assert high - low < 0.1
        assert d == pytest.approx(float((after - before).mean()))
    assert np.mean(covered) > 0.85


def test_no_change_has_p_one_and_holm_controls_the_family() -> None:
    same = rng.random((50, 1))
    assert S.paired("mean", same, same)[0:4] == (0.0, 0.0, 0.0, 1.0)
    p = np.array([0.001, 0.02, 0.04, 0.03])
    assert S.holm(p).tolist() == [True, False, False, False]
    assert S.holm(np.array([0.001, 0.01, 0.02, 0.04])).all()


def test_measured_chooses_the_interval() -> None:
    index = np.arange(80)
    assert measured("a", np.ones(80), index)[0].interval == "Wilson 95%"
    assert measured("a", rng.random(80), index)[0].interval == "bootstrap 95%"
    size = measured("a", np.ones(80), index, rate=False)[0]
    assert (size.low, size.high, size.interval) == (1, 1, "bootstrap 95%")
    assert measured("a", rng.random(20), index[:20])[0].interval is None
    with pytest.raises(ValueError, match="no samples"):
        measured("a", np.zeros(0), np.zeros(0))
