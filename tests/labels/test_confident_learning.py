"""Confident learning against hand-worked counts, known noise and its invariants."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.labels import ConfidentLearning, confident_joint, estimate_joint, label_quality
from assay.labels.confident_learning import apportion, largest, thresholds
from assay.runtime.errors import InputError

Y = np.array([0, 0, 0, 1, 1, 1])
P = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])


def problem(seed, n=300, c=4, flip=0.2):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, c, n)
    y = np.where(rng.random(n) < flip, (true + 1) % c, true)
    z = rng.normal(size=(n, c)) + 3 * np.eye(c)[true]
    return true, y, np.exp(z) / np.exp(z).sum(1, keepdims=True)


def test_hand_worked_example():
    # thresholds (0.6, 0.7): rows 0, 1 count as (0, 0), row 2 as (0, 1), rows 3, 4 as (1, 1), row 5 as none.
    assert np.allclose(thresholds(Y, P), [0.6, 0.7])
    assert confident_joint(Y, P).tolist() == [[2, 1], [0, 2]]
    assert np.allclose(estimate_joint(Y, P), [[2 / 6, 1 / 6], [0, 3 / 6]])
    for prune in ("noise-rate", "class", "both", "off-diagonal"):
        found = ConfidentLearning(prune=prune).fit(Y, P)
        assert found.suspects_.tolist() == [False, False, True, False, False, False]
    assert found.error_rate_ == pytest.approx(1 / 6)
    assert np.allclose(found.noise_matrix_, [[1, 0.25], [0, 0.75]])
    assert np.allclose(found.inverse_noise_matrix_, [[2 / 3, 0], [1 / 3, 1]])


def test_collision_goes_to_the_largest_confident_probability():
    y = np.array([0, 1, 2, 2])
    p = np.array([[0.3, 0.25, 0.45], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0], [0.0, 0.1, 0.9]])
    # thresholds (0.3, 0.2, 0.95): row 0 passes classes 0 and 1, while class 2 is the most probable of all.
    assert confident_joint(y, p)[0].tolist() == [1, 0, 0]
    assert confident_joint(y, p, collisions="any")[0].tolist() == [1, 0, 1]


def test_known_noise_is_recovered_under_ideal_probabilities():
    joint = np.array([[30, 6, 0], [4, 40, 8], [2, 0, 10]])
    given, true = (a.repeat(joint.ravel()) for a in np.divmod(np.arange(9), 3))
    found = ConfidentLearning().fit(given, np.eye(3)[true])
    assert np.allclose(found.joint_, joint / 100)
    assert found.error_rate_ == pytest.approx(0.2)
    assert np.array_equal(found.suspects_, given != true)


@pytest.mark.parametrize("seed", range(5))
def test_asymmetric_flips_are_found(seed):
    true, y, p = problem(seed, 2000, 5, 0.1)
    found = ConfidentLearning().fit(y, p)
    wrong, hits = y != true, (found.suspects_ & (y != true)).sum()
    assert 2 * hits / (found.suspects_.sum() + wrong.sum()) > 0.7
    assert abs(found.error_rate_ - wrong.mean()) < 0.04


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(5, 80))
def test_invariants(seed, c, n):
    _, y, p = problem(seed, n, c)
    joint = estimate_joint(y, p)
    assert np.allclose(joint.sum(1), np.bincount(y, minlength=c) / n)
    found = {k: ConfidentLearning(prune=k).fit(y, p).suspects_ for k in ("noise-rate", "class", "both")}
    assert np.array_equal(found["both"], found["noise-rate"] & found["class"])
    assert not (found["noise-rate"] & (p.argmax(1) == y)).any()
    order = np.random.default_rng(seed).permutation(n)
    assert np.allclose(estimate_joint(y[order], p[order]), joint)
    assert np.array_equal(ConfidentLearning().fit(y[order], p[order]).suspects_, found["noise-rate"][order])


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_rounding_and_selection(seed):
    rng = np.random.default_rng(seed)
    counts, totals = rng.integers(0, 9, (4, 6)) + np.eye(4, 6, dtype=int), rng.integers(0, 40, 4)
    whole = apportion(counts, totals)
    assert np.array_equal(whole.sum(1), totals)
    for row, made, total in zip(counts.tolist(), whole.tolist(), totals.tolist(), strict=True):
        exact = [Fraction(v * total, sum(row)) for v in row]
        up = [e - int(e) for e, w in zip(exact, made, strict=True) if w > e]
        down = [e - int(e) for e, w in zip(exact, made, strict=True) if w < e]
        assert all(abs(e - w) < 1 for e, w in zip(exact, made, strict=True))
        assert not up or not down or min(up) >= max(down)
    values, k = rng.integers(0, 4, (3, 8)).astype(float), rng.integers(0, 9, 3)
    for row, marked, size in zip(values, largest(values, k), k, strict=True):
        assert np.flatnonzero(marked).tolist() == sorted(np.argsort(-row, kind="stable")[:size].tolist())


def test_equal_remainders_favour_the_last_class():
    assert apportion(np.array([[3, 1, 1]]), np.array([7])).tolist() == [[4, 1, 2]]
    assert apportion(np.array([[1, 1, 1]]), np.array([4])).tolist() == [[1, 1, 2]]


def test_quality_and_ranking():
    assert np.allclose(label_quality(Y, P), [0.9, 0.8, 0.1, 0.8, 0.7, 0.6])
    assert np.allclose(label_quality(Y, P, "normalized-margin"), [0.8, 0.6, -0.8, 0.6, 0.4, 0.2])
    assert label_quality(Y, P, "weighted-entropy").argmin() == 2
    _, y, p = problem(0)
    found = ConfidentLearning(ranking="self-confidence").fit(y, p)
    assert (np.diff(p[found.ranked(), y[found.ranked()]]) >= 0).all()


@pytest.mark.parametrize(
    ("y", "p"),
    [(Y[:3], P), (Y + 1, P), (Y, P * 2), (Y, P * np.nan), (Y.astype(float), P), (Y, P * 0.5), (Y[:0], P[:0])],
)
def test_bad_input(y, p):
    with pytest.raises(InputError, match="expected"):
        ConfidentLearning().fit(y, p)
    with pytest.raises(InputError):
        ConfidentLearning(prune="all")


def test_in_sample_probabilities_are_suspected():
    with pytest.warns(UserWarning, match="in-sample"):
        ConfidentLearning().fit(Y, np.eye(2)[Y])
