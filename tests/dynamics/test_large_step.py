"""Large steps: the limit, the worst case, the bounds, the margin against a peer, and unusable input."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from assay.dynamics import BatchPerceptron, ConvergenceWarning, LogisticGD, Perceptron, separability_report
from assay.papers.large_step_perceptron import worst_case
from assay.runtime.errors import InputError


def _separable(seed: int, n: int = 40, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=d)
    x = rng.normal(size=(n, d))
    x += 0.3 * np.sign(x @ w)[:, None] * w / np.linalg.norm(w)
    return x, (x @ w > 0).astype(int)


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_huge_steps_are_the_batch_perceptron(seed: int) -> None:
    paths: dict[str, list[np.ndarray]] = {"descent": [], "perceptron": []}
    x, y = _separable(seed)
    step = 1e10
    a = LogisticGD(step=step, callback=lambda t, th: paths["descent"].append(th / step)).fit(x, y)
    b = BatchPerceptron(callback=lambda t, p: paths["perceptron"].append(p)).fit(x, y)
    assert a.n_iter_ == b.n_iter_
    for th, p in zip(paths["descent"][1:], paths["perceptron"][1:], strict=True):
        assert np.linalg.norm(th - p) <= 1e-6 * np.linalg.norm(p)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 100.0]))
def test_iterations_obey_their_bounds(seed: int, step: float) -> None:
    x, y = _separable(seed)
    report = separability_report(x, y)
    normalised = LogisticGD(step=step, normalized=True, max_iter=100_000).fit(x, y)
    assert normalised.converged_
    assert normalised.n_iter_ <= report.bound_logistic(step)
    assert BatchPerceptron().fit(x, y).n_iter_ <= report.bound_batch
    assert BatchPerceptron(normalize="misclassified").fit(x, y).n_iter_ <= report.bound_normalized
    for order in ("first", "cyclic", "random"):
        run = Perceptron(order=order).fit(x, y)
        assert (run.predict(x) == y).all()
        assert run.n_iter_ <= report.bound_normalized


def test_loss_misleads_on_two_points() -> None:
    g = 1e8
    run = LogisticGD(step=g).fit([[1, -1], [-1, -4]], [1, -1])
    assert run.n_iter_ == 2
    assert run.history_[1].loss == pytest.approx(g / 8)
    assert run.history_[1].gradient == pytest.approx(0.5**0.5)
    assert run.coef_ / g == pytest.approx([1, 0.25])
    assert run.history_[2].loss == pytest.approx(0, abs=1e-12)


def test_worst_case_matches_the_papers_order() -> None:
    x, y = worst_case(1000)
    found = [LogisticGD(step=g, normalized=True).fit(x, y).n_iter_ for g in (100, 10, 1, 0.1)]
    assert found[:3] == [2, 2, 16]
    assert abs(found[3] - 157) <= 2
    assert abs(LogisticGD(step=100).fit(x, y).n_iter_ - 308) <= 2


def test_first_steps_by_hand() -> None:
    x, y = _separable(3)
    mean = (np.where(y == 1, 1, -1)[:, None] * x).mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert LogisticGD(step=3, max_iter=1).fit(x, y).coef_ == pytest.approx(1.5 * mean)
        assert LogisticGD(step=3, normalized=True, max_iter=1).fit(x, y).coef_ == pytest.approx(3 * mean)
        assert BatchPerceptron(max_iter=1).fit(x, y).coef_ == pytest.approx(mean / 2)
        assert BatchPerceptron(max_iter=1, first_half_step=False).fit(x, y).coef_ == pytest.approx(mean)
        assert BatchPerceptron(max_iter=1, normalize="misclassified").fit(x, y).coef_ == pytest.approx(mean)


@pytest.mark.parametrize("seed", range(4))
def test_margin_is_that_of_a_hard_margin_machine(seed: int) -> None:
    x, y = _separable(seed)
    augmented = np.hstack([x, np.ones((len(x), 1))])
    for points in (x, 50 * x, augmented):
        report = separability_report(points, y)
        mirrored = np.vstack([points, -points])  # makes the machine's own intercept 0
        peer = SVC(C=1e10, kernel="linear", tol=1e-8).fit(mirrored, np.concatenate([y, 1 - y]))
        assert report.margin == pytest.approx(1 / np.linalg.norm(peer.coef_), rel=1e-3)
        assert report.radius == pytest.approx(np.linalg.norm(points, axis=1).max())


def test_what_is_not_separable_is_reported_and_warned_of() -> None:
    x, y = [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [1, 0, 1]
    report = separability_report(x, y)
    assert not report.separable
    assert report.bound_batch == report.bound_logistic(1.0) == np.inf
    with pytest.warns(ConvergenceWarning, match="misclassified after 20"):
        assert not LogisticGD(max_iter=20).fit(x, y).converged_


def test_same_result_for_both_label_sets_and_inputs_untouched() -> None:
    x, y = _separable(5)
    kept = x.copy()
    a, b = LogisticGD().fit(x, y), LogisticGD().fit(x, 2 * y - 1)
    assert (a.coef_ == b.coef_).all()
    assert (b.predict(x) == 2 * y - 1).all()
    assert (x == kept).all()
    once, again = (Perceptron(order="random", seed=2).fit(x, y).coef_ for _ in range(2))
    assert (once == again).all()


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        ([[1.0], [2.0], [3.0]], [0, 1, 2], "two classes"),
        ([[1.0], [np.nan]], [0, 1], "NaN"),
        ([[1.0], [0.0]], [0, 1], "all-zero"),
        ([[1.0], [2.0]], [0], "expected"),
        (np.zeros((0, 2)), [], "expected"),
    ],
)
def test_bad_data(x: object, y: object, match: str) -> None:
    for method in (LogisticGD(), BatchPerceptron(), Perceptron()):
        with pytest.raises(InputError, match=match):
            method.fit(x, y)


def test_bad_options() -> None:
    for step in (0.0, -1.0, np.inf):
        with pytest.raises(InputError, match="step"):
            LogisticGD(step=step)
    for make in (LogisticGD, BatchPerceptron, Perceptron):
        with pytest.raises(InputError, match="max_iter"):
            make(max_iter=0)
    with pytest.raises(InputError, match="order"):
        Perceptron(order="last")
    with pytest.raises(InputError, match="normalize"):
        BatchPerceptron(normalize="all")
