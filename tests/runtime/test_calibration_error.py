"""Intervals of binned calibration errors hold the truth, also where a model is calibrated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.runtime import calibration_error as C
from assay.runtime import statistics as S
from assay.runtime.metric import measured

Draw = Callable[[np.random.Generator, int], np.ndarray]
CONFIDENCES: dict[str, Draw] = {
    "spread": lambda r, n: r.uniform(0.3, 1, n),
    "sharp": lambda r, n: 1 - 0.5 * r.beta(0.3, 6, n),
}


def _sample(r: np.random.Generator, confidence: np.ndarray, off: float) -> np.ndarray:
    """Columns confidence, correct; the confidence is ``off`` too high."""
    return np.stack([confidence, r.random(len(confidence)) < np.clip(confidence - off, 0, 1)], 1).astype(float)


def _truth(statistic: str, draw: Draw, off: float) -> float:
    c = draw(np.random.default_rng(1), 400_000)
    exact = np.stack([c, np.clip(c - off, 0, 1)], 1)
    return S.point(statistic, exact)


@pytest.mark.parametrize("statistic", C.BINNED)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=60), st.integers(0, 3))
def test_bins_are_those_of_the_statistic(statistic: str, rows: list[tuple[int, bool]], seed: int) -> None:
    values = np.array([(k / 20, float(right)) for k, right in rows])
    whole, apart = C._signed(statistic, values, seed)
    assert whole.mean() == pytest.approx(S.point(statistic, values), abs=1e-12)
    assert apart.mean() <= whole.mean() + 1e-12


@pytest.mark.parametrize("statistic", C.BINNED)
@pytest.mark.parametrize("kind", CONFIDENCES)
@pytest.mark.parametrize("off", [0.0, 0.03, 0.1])
def test_the_interval_holds_the_population_s_error_and_the_sample_s(statistic: str, kind: str, off: float) -> None:
    draw, held, runs = CONFIDENCES[kind], 0, 60
    truth = _truth(statistic, draw, off)
    for k in range(runs):
        r = np.random.default_rng(k)
        values = _sample(r, draw(r, 300), off)
        low, high = S.bootstrap(statistic, values, seed=k)
        assert 0 <= low <= S.point(statistic, values) <= high
        held += low <= truth <= high
    assert held >= 0.92 * runs  # of 60, 55.2: 95% less two standard errors; percentiles alone hold a true 0 in none


@pytest.mark.parametrize("statistic", C.BINNED)
@pytest.mark.parametrize("n", [3000, 120_000])
def test_a_large_error_is_found(statistic: str, n: int) -> None:
    r = np.random.default_rng(0)
    low, high = S.bootstrap(statistic, _sample(r, r.uniform(0.3, 1, n), 0.1))
    assert 0.06 < low < 0.1 < high < 0.14
    assert high - low < 4 / n**0.5


@pytest.mark.parametrize("statistic", C.BINNED)
@pytest.mark.parametrize("kind", CONFIDENCES)
@pytest.mark.parametrize("n", [200, 3000])
def test_the_interval_of_a_difference_holds_the_population_s(statistic: str, kind: str, n: int) -> None:
    draw, held, worse, better, runs = CONFIDENCES[kind], 0, 0, 0, 60
    truth = -_truth(statistic, draw, 0.1)
    for k in range(runs):
        r = np.random.default_rng(k)
        before = _sample(r, draw(r, n), 0.1)
        after = np.stack([np.clip(before[:, 0] - 0.1, 0, 1), before[:, 1]], 1)
        d, low, high, p = S.paired_differences(statistic, before, after)
        assert low <= d <= high
        assert (p < 0.05) == (not low <= 0 <= high)
        held += low <= truth <= high
        worse, better = worse + (low > 0), better + (high < 0)
    assert held >= 0.92 * runs
    assert worse <= 1
    assert better >= (0.9 * runs if n == 3000 else 0)


def test_a_difference_turns_with_its_sides_and_none_is_found_in_the_same() -> None:
    r = np.random.default_rng(0)
    before = _sample(r, r.uniform(0.3, 1, 500), 0.2)
    after = np.stack([before[:, 0] ** 2, before[:, 1]], 1)
    d, low, high, p = C.difference("ece", before, after)
    assert C.difference("ece", after, before) == pytest.approx((-d, -high, -low, p))
    assert C.difference("ece", before, before) == (0, 0, 0, 1)


def test_intervals_are_named() -> None:
    r = np.random.default_rng(0)
    metric = measured("calibration.ece", _sample(r, r.random(80), 0), np.arange(80), statistic="ece")[0]
    assert metric.interval == "halves and bootstrap 95%"
    assert S.named_difference("ece") == "paired halves 95%"
    assert S.named_difference("mean") == "paired bootstrap 95%"
