"""Naive Bayes and logistic probes: scikit-learn's checks, its own estimators as references, splits, curves, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from assay.losses import logistic_h_bound, zero_one_bound
from assay.papers.generative_probe import bound_slack, identities
from assay.represent import (
    GaussianClasses,
    LogisticProbe,
    NaiveBayesProbe,
    ProbeCurves,
    compare_probes,
    sample_complexity,
    two_regimes,
)
from assay.runtime.errors import InputError


@parametrize_with_checks([NaiveBayesProbe(), NaiveBayesProbe(shared_variance=False), LogisticProbe()])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def points(m: int = 90, n: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(m) % 3
    return rng.normal(size=(m, n)) + rng.normal(size=(3, n))[y], y


def test_identities_hold_and_each_sham_breaks_the_linear_form() -> None:
    assert max(identities(0).values()) < 1e-9
    for sham in ("full-covariance", "per-class-variance"):
        assert identities(0, sham)["linear"] > 0.1


def test_the_linear_form_and_its_closed_form() -> None:
    x, y = points()
    probe = NaiveBayesProbe().fit(x, y)
    v = sum((y == k).mean() * x[y == k].var(0) for k in range(3)) + 1e-9
    mean = np.stack([x[y == k].mean(0) for k in range(3)])
    by_hand = np.array([[np.log(1 / 3) - 0.5 * ((row - mu) ** 2 / v).sum() for mu in mean] for row in x])
    assert np.allclose(probe.scores(x), by_hand, atol=1e-9)
    weight, bias = probe.to_linear()
    shared = (x**2 / v).sum(1, keepdims=True) / 2
    assert np.allclose(x @ weight.T + bias - shared, by_hand, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 89), max_size=5), offset=st.sampled_from([0.0, 1e4]))
def test_any_split_gives_the_fit_of_the_whole(cuts: list[int], offset: float) -> None:
    x, y = points()
    x += offset
    whole, parts = NaiveBayesProbe().fit(x, y), NaiveBayesProbe()
    for rows in np.split(np.arange(90), sorted(set(cuts))):
        parts.partial_fit(x[rows], y[rows], classes=[0, 1, 2])
    assert np.allclose(parts.variance_, whole.variance_, rtol=1e-9)
    assert np.allclose(parts.mean_, whole.mean_, rtol=1e-12)


def test_a_class_without_samples_is_not_predicted_and_constant_features_are_named() -> None:
    x, y = points()
    x[:, 2] = 0.3
    probe = NaiveBayesProbe().partial_fit(x[y < 2], y[y < 2], classes=[0, 1, 2])
    assert set(probe.predict(x)) == {0, 1}
    assert probe.constant_.tolist() == [False, False, True, False, False]
    with pytest.raises(InputError, match="no sample of class"):
        probe.to_linear()
    with pytest.raises(InputError, match="variance"):
        NaiveBayesProbe(var_smoothing=0.0).fit(x, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_both_solvers_have_one_objective(classes: int) -> None:
    x, y = points(60)
    x, y = x[y < classes], y[y < classes]
    sgd, lbfgs = (LogisticProbe(C=0.02, scaler=None, solver=name).fit(x, y) for name in ("sgd", "lbfgs"))
    assert np.allclose(sgd.coef_, lbfgs.coef_, atol=5e-3)


@pytest.mark.parametrize("cuts", [[], [5], [1, 2, 9]])
def test_constants_that_do_not_sum_exactly_are_constants(cuts: list[int]) -> None:
    x = np.random.default_rng(0).normal(size=(13, 2))
    x[:, 1] = 0.1
    probe = NaiveBayesProbe()
    for part in np.split(np.arange(13), cuts):
        probe.partial_fit(x[part], part % 2, classes=[0, 1])
    assert probe.constant_.tolist() == [False, True]
    with pytest.raises(InputError, match="without variance"):
        NaiveBayesProbe(var_smoothing=0.0).fit(x, np.arange(13) % 2)


def test_the_search_of_sgd_leaves_rates_that_diverge() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = (x[:, 0] > 0).astype(int)
    probe = LogisticProbe(C=1e-3, solver="sgd").fit(x, y)
    assert probe.lr_ < 1
    assert (probe.predict(x) == LogisticProbe(C=1e-3).fit(x, y).predict(x)).mean() > 0.9
    with pytest.raises(InputError, match="larger C"):
        LogisticProbe(C=1e-7, solver="sgd").fit(x, y)


def test_the_logistic_probe_is_scikit_learns_and_sgd_finds_the_same() -> None:
    x, y = points(60)
    plain = LogisticRegression(C=0.5, max_iter=1000).fit(x, y)
    probe = LogisticProbe(C=0.5, scaler=None).fit(x, y)
    assert np.allclose(probe.decision_function(x), plain.decision_function(x))
    assert probe.converged_
    for part in (slice(None), y < 2):
        sgd, lbfgs = (
            LogisticProbe(scaler=None, solver=name, epochs=100).fit(x[part], y[part]) for name in ("sgd", "lbfgs")
        )
        assert sgd.coef_.shape == lbfgs.coef_.shape
        assert (sgd.predict(x) == lbfgs.predict(x)).mean() > 0.9
        assert np.corrcoef(sgd.coef_.ravel(), lbfgs.coef_.ravel())[0, 1] > 0.95
    assert (sgd.coef_ == LogisticProbe(scaler=None, solver="sgd", epochs=100).fit(x[part], y[part]).coef_).all()


def test_min_max_is_fitted_on_the_training_samples() -> None:
    x, y = points()
    probe = LogisticProbe().fit(x, y)
    assert np.allclose(probe.decision_function(x * 7 - 3), LogisticProbe().fit(x, y).decision_function(x * 7 - 3))
    scaled = LogisticProbe().fit(x * 7 - 3, y)
    assert np.allclose(scaled.decision_function(x * 7 - 3), probe.decision_function(x), atol=1e-3)


@pytest.mark.parametrize("covariance", ["easy", "hard"])
def test_exact_errors_of_the_simulation_are_those_measured(covariance: Any) -> None:
    simulator = GaussianClasses(classes=3, features=8, covariance=covariance, seed=1)
    x, y = simulator.sample(40_000, seed=3)
    means = np.repeat(simulator.means[:, None], 8, 1)
    for inverse, expected in (
        (np.linalg.inv(simulator.sigma), simulator.bayes_error),
        (np.diag(1 / simulator.sigma.diagonal()), simulator.naive_error),
    ):
        scores = x @ inverse @ means.T - 0.5 * ((means @ inverse) * means).sum(1)
        assert (scores.argmax(1) != y).mean() == pytest.approx(expected, abs=0.008)
    own = (NaiveBayesProbe().fit(x, y).predict(x) != y).mean()
    assert own == pytest.approx(simulator.naive_error, abs=0.01)
    assert simulator.naive_error >= simulator.bayes_error - 1e-12
    assert (simulator.naive_error > simulator.bayes_error + 1e-3) == (covariance == "hard")


def test_sizes_that_are_enough() -> None:
    simulator = GaussianClasses(classes=2, features=20)
    assert (np.bincount(simulator.sample(10, seed=0, stratify=True)[1]) == 5).all()
    found = sample_complexity(simulator, NaiveBayesProbe(), seed=0)
    assert found is not None
    assert 4 <= found < 40
    assert sample_complexity(simulator, NaiveBayesProbe(), seed=0) == found
    assert sample_complexity(simulator, NaiveBayesProbe(), seed=0, reference=1.0, sizes=[7, 9]) == 7
    assert sample_complexity(simulator, NaiveBayesProbe(), seed=0, reference=-1.0, sizes=[7, 9]) is None


def test_curves_share_their_samples_and_the_crossing_is_found() -> None:
    x, y = points(200)
    twice = {"a": NaiveBayesProbe(), "b": NaiveBayesProbe()}
    curves = compare_probes(x, y, x, y, [6, 50], seed=0, repeats=3, probes=twice)
    assert (curves.of("a") == curves.of("b")).all()
    assert curves.standard_error.shape == (2, 2)
    graph = torch.from_numpy(x).requires_grad_()
    for features, labels in ((graph, torch.from_numpy(y)), (x.tolist(), y.tolist())):
        same = compare_probes(features, labels, features, labels, [6, 50], seed=0, repeats=3, probes=twice)
        assert (same.errors == curves.errors).all()
    nb, lr = np.array([[0.2, 0.21], [0.2, 0.2], [0.19, 0.2]]), np.array([[0.5, 0.4], [0.2, 0.21], [0.1, 0.11]])
    regimes = two_regimes(ProbeCurves((5, 10, 20), ("naive bayes", "logistic"), np.stack((nb, lr))))
    assert (regimes.crossing, regimes.generative_first) == (20, True)
    assert regimes.asymptotes == pytest.approx((0.195, 0.105))
    swapped = two_regimes(ProbeCurves((5, 10, 20), ("naive bayes", "logistic"), np.stack((lr, nb))))
    assert (swapped.crossing, swapped.generative_first) == (5, False)


def test_the_logistic_bound_follows_from_the_exact_one() -> None:
    t = np.linspace(0, 2, 200)
    assert (logistic_h_bound(t) >= zero_one_bound(t, 1, 4) - 1e-12).all()
    assert bound_slack(0) >= 0


def test_bad_input() -> None:
    x, y = points()
    bad = x.copy()
    bad[0, 0] = np.nan
    for call in (
        lambda: NaiveBayesProbe().fit(bad, y),
        lambda: NaiveBayesProbe().fit(x, y[:5]),
        lambda: NaiveBayesProbe().fit(x, y * 0),
        lambda: NaiveBayesProbe(var_smoothing=-1.0).fit(x, y),
        lambda: NaiveBayesProbe().partial_fit(x, y),
        lambda: NaiveBayesProbe().partial_fit(x, y, classes=[0, 1]),
        lambda: NaiveBayesProbe(shared_variance=False).fit(x, y).to_linear(),
        lambda: NaiveBayesProbe().fit(x, y).predict(bad),
        lambda: LogisticProbe().fit(bad, y),
        lambda: LogisticProbe().fit(x, y * 0),
        lambda: LogisticProbe(C=0.0).fit(x, y),
        lambda: compare_probes(x, y, x, y, [2], seed=0),
        lambda: compare_probes(bad, y, x, y, [6], seed=0),
        lambda: compare_probes(x, y, x[:, :1], y, [6], seed=0),
        lambda: compare_probes(x, y, x[:0], y[:0], [6], seed=0),
        lambda: GaussianClasses(classes=1),
        lambda: GaussianClasses().sample(1, seed=0),
        lambda: sample_complexity(GaussianClasses(), NaiveBayesProbe(), seed=0, sizes=[9, 4]),
        lambda: logistic_h_bound(-1.0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    for name in ("scaler", "solver"):
        with pytest.raises(InputError, match="unknown"):
            LogisticProbe(**{name: "other"}).fit(x, y)
