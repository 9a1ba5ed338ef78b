"""Verdicts, standings, curves and crossovers against hand-worked cases and simulation; masks against the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.labels import (
    consensus_from_votes,
    corrected_benchmark,
    crossover_prevalence,
    noise_prevalence_curve,
)
from assay.papers import label_errors
from assay.runtime.errors import InputError

SHARE = st.floats(0, 1)


def test_verdicts():
    votes = [{"given": 5}, {"guessed": 3, "given": 2}, {"both": 4}, {"neither": 3}, {"given": 2, "guessed": 2}, {}]
    expected = ["given", "guessed", "both", "neither", "no agreement", "no agreement"]
    assert consensus_from_votes(votes) == expected
    assert consensus_from_votes([{"given": 3, "guessed": 3}]) == ["given"]  # the guess is the given label
    assert consensus_from_votes([{"given": 2, "guessed": 3}], min_votes=2) == ["given"]


@pytest.mark.parametrize("votes", [[{"given": -1}], [{"other": 1}]])
def test_odd_votes(votes):
    with pytest.raises(InputError, match="item 0"):
        consensus_from_votes(votes)
    with pytest.raises(InputError, match="min_votes"):
        consensus_from_votes([], min_votes=0)


def test_standing_by_hand():
    y = np.array([0, 1, 2, 0, 1, 2])
    rows, verdicts, guessed = np.array([1, 2, 3, 5]), ["given", "guessed", "neither", "guessed"], np.array([0, 0, 1, 1])
    # benign 0, 1, 4; correctable 2 (to 0) and 5 (to 1); 3 is left out.
    found = corrected_benchmark({"a": y, "b": np.array([0, 0, 0, 0, 1, 1])}, y, rows, verdicts, guessed)
    assert (found["a"].benign, found["a"].original, found["a"].corrected) == (1, 1, 0)
    assert (found["b"].benign, found["b"].original, found["b"].corrected) == (pytest.approx(2 / 3), 0, 1)


@pytest.mark.parametrize(
    ("rows", "verdicts", "predicted"),
    [
        ([0, 0], ["guessed"] * 2, [0, 1, 0]),
        ([0, 3], ["guessed"] * 2, [0, 1, 0]),
        ([0, 1], ["guessed"], [0, 1, 0]),
        ([0, 1], ["neither"] * 2, [0, 1, 0]),
        ([0, 1], ["guessed"] * 2, [0, 1]),
        ([0.0, 1.0], ["guessed"] * 2, [0, 1, 0]),
    ],
)
def test_bad_benchmarks(rows, verdicts, predicted):
    with pytest.raises(InputError, match="benchmark"):
        corrected_benchmark({"m": np.array(predicted)}, np.array([0, 1, 0]), np.array(rows), verdicts, np.array([1, 0]))
    nothing: list[int] = []
    with pytest.raises(InputError, match="no correctable"):
        corrected_benchmark({}, np.array([0, 1, 0]), np.array(nothing), [], np.array(nothing))


@settings(max_examples=60)
@given(SHARE, SHARE, SHARE, SHARE)
def test_crossover_is_where_the_curves_meet(b, e, other_b, other_e):
    at = crossover_prevalence(b, e, other_b, other_e)
    if np.isnan(at):
        ends = np.array([0.0, 1.0])
        gap = noise_prevalence_curve(b, e, ends) - noise_prevalence_curve(other_b, other_e, ends)
        assert gap[0] * gap[1] >= 0
    else:
        assert 0 <= at <= 1
        point = np.array([at])
        assert noise_prevalence_curve(b, e, point) == pytest.approx(noise_prevalence_curve(other_b, other_e, point))


def test_crossover_by_hand():
    assert crossover_prevalence(0.9, 0.2, 0.8, 0.5) == pytest.approx(0.25)
    assert np.isnan(crossover_prevalence(0.9, 0.5, 0.8, 0.2))
    assert np.isnan(crossover_prevalence(0.9, 0.5, 0.9, 0.5))
    for wrong in (1.2, float("nan")):
        with pytest.raises(InputError, match="prevalence curve"):
            noise_prevalence_curve(0.5, wrong, np.zeros(1))


def test_curve_is_the_mean_of_resampled_test_sets():
    rng = np.random.default_rng(0)
    benign, correctable = np.arange(400) < 330, np.arange(40) < 10
    for kept in (360, 160, 40):
        prevalence = 40 / (40 + kept)
        means = [np.r_[rng.choice(benign, kept, replace=False), correctable].mean() for _ in range(400)]
        expected = noise_prevalence_curve(330 / 400, 0.25, np.array([prevalence]))[0]
        assert abs(np.mean(means) - expected) < 4 * np.std(means) / 20


@pytest.mark.parametrize(("kind", "judged", "errors"), [("cifar10", 275, 54), ("mnist", 100, 15)])
def test_released_votes_and_lists(real_data, kind, judged, errors):
    found = label_errors._released(kind)
    assert (found["judged"], found["errors"], found["elsewhere"]) == (judged, errors, 0)
