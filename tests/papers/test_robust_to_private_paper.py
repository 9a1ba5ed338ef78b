"""The paper's reference search against the counting formula, and what each sham takes away."""

import numpy as np
import pytest

from assay.papers import robust_to_private as paper
from assay.papers.robust_to_private import EPS, UNIVERSE
from assay.privacy import dp_audit_exact

SMOKE = paper.PAPER.scale("smoke")
BOUNDS = (UNIVERSE[0], UNIVERSE[-1])


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_counting_says(seed: int) -> None:
    x, t = np.random.default_rng(seed).choice(UNIVERSE, 5), np.array(UNIVERSE)
    below, upto = (x[:, None] < t).sum(0), (x[:, None] <= t).sum(0)
    assert paper.searched(x).tolist() == np.maximum(np.maximum(below - 2, 3 - upto), 0).tolist()


@pytest.mark.parametrize("rho", paper.WIDTHS)
def test_without_the_half_the_mechanism_is_that_of_twice_eps(rho: float) -> None:
    """The sham is no broken mechanism: it keeps 2 eps, so that only the half is missing."""
    sham, real = (paper._mechanism(name, BOUNDS, rho) for name in ("missing-half", None))
    x = np.array([0.0, 1.0, 1.0, 4.0, 4.0])
    assert np.allclose(sham.density(x).logw, 2 * real.density(x).logw)
    assert EPS < dp_audit_exact(sham.density, UNIVERSE, 5) <= 2 * EPS


def test_distance_moves_by_the_whole_range_where_the_path_length_moves_by_one() -> None:
    x, y = np.array([0.0, 0.0, 0.0, 4.0, 4.0]), np.array([0.0, 0.0, 4.0, 4.0, 4.0])
    t = np.array([0.0])
    for sham, moved in ((None, 1), ("distance-for-length", 4)):
        estimator = paper._mechanism(sham, BOUNDS).estimator
        assert abs(estimator.length(x, t, BOUNDS) - estimator.length(y, t, BOUNDS))[0] == moved


def test_the_prediction_is_no_empty_one() -> None:
    found = paper._bounded(SMOKE, 5, None)
    assert 0.3 < found["predicted"] < 1.5
    assert found["within"] == 1


def test_the_ranges_hold_the_columns() -> None:
    for name, x in paper._columns().items():
        low, high = paper.RANGES[name]
        assert low < x.min() < x.max() < high
