"""Path lengths against enumeration, densities and ratios against definitions, and the bounds of the transformation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from assay.privacy import (
    ClippedMean,
    InverseSensitivity,
    OrderStatistic,
    PiecewiseConstant,
    Quantile,
    RobustToPrivate,
    TrimmedMean,
    TruncatedSensitivity,
    TukeyMechanism,
    WinsorisedMean,
    dp_audit_exact,
    laplace_mean,
    predicted_error,
    private_median,
    private_quantile,
    private_trimmed_mean,
    robustness_from_privacy,
)
from assay.privacy.differential.dp_audit import _log_ratio, neighbours
from assay.runtime.errors import InputError

STATISTICS: dict[str, tuple[OrderStatistic, Callable[[np.ndarray], float]]] = {
    "median": (Quantile(), lambda x: float(np.sort(x)[(len(x) - 1) // 2])),
    "quantile": (Quantile(q=0.75), lambda x: float(np.quantile(x, 0.75, method="lower"))),
    "trimmed": (TrimmedMean(trim=0.2), lambda x: float(stats.trim_mean(x, 0.2))),
    "mean": (TrimmedMean(trim=0.0), lambda x: float(np.mean(x))),
    "winsorised": (WinsorisedMean(trim=0.2), lambda x: float(stats.mstats.winsorize(x, (0.2, 0.2)).mean())),
    "clipped": (ClippedMean(low=1, high=3), lambda x: float(np.clip(x, 1, 3).mean())),
}
statistics = pytest.mark.parametrize("name", STATISTICS)


@statistics
def test_values_are_those_of_scipy(name: str) -> None:
    estimator, reference = STATISTICS[name]
    for n in (1, 2, 5, 40):
        x = np.random.default_rng(n).normal(2, 1, n)
        assert estimator.value(x) == pytest.approx(reference(x), abs=1e-12)


@statistics
def test_reach_is_what_enumeration_finds(name: str) -> None:
    """All replacements of j points by any values of the universe; its ends are the bounds, so extremes are exact."""
    estimator, reference = STATISTICS[name]
    rng, universe = np.random.default_rng(0), (0.0, 2.0, 4.0)
    for _ in range(3):
        x = rng.integers(0, 5, 5).astype(float)
        lower, upper = estimator.reach(x, (0.0, 4.0))
        for j in range(4):
            values = [
                reference(np.append(np.delete(x, rows), new))
                for rows in combinations(range(5), j)
                for new in product(universe, repeat=j)
            ]
            assert lower[j] == pytest.approx(min(values), abs=1e-12)
            assert upper[j] == pytest.approx(max(values), abs=1e-12)


def shortest(x: tuple[int, ...], k: int) -> dict[int, int]:
    """For each value of 0 to 4, the fewest replaced points of ``x`` after which it is the k-th of the sorted sample."""
    best = dict.fromkeys(range(5), len(x) + 1)
    for other in product(range(5), repeat=len(x)):
        t = sorted(other)[k]
        best[t] = min(best[t], sum(a != b for a, b in zip(x, other, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_median_s_path_length_is_the_formula_and_the_search(seed: int) -> None:
    n = 4 + seed % 2
    x = np.random.default_rng(seed).integers(0, 5, n)
    k, t = (n - 1) // 2, np.arange(5.0)
    below, upto = (x[:, None] < t).sum(0), (x[:, None] <= t).sum(0)
    formula = np.maximum(np.maximum(below - k, k + 1 - upto), 0)
    found = Quantile().length(x, t, (0, 4))
    assert found.tolist() == formula.tolist() == list(shortest(tuple(x), k).values())


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.sampled_from(list(STATISTICS)), st.floats(0, 2))
@example([-1.330978824783772, 0.0], "clipped", 0.0)  # sums that round differently at the ends of the support
def test_one_replaced_point_moves_length_and_density_by_little(values: list[float], name: str, rho: float) -> None:
    estimator, x = STATISTICS[name][0], np.array(values)
    y = np.append(x[1:], -x[0] / 2 + 1)
    t = np.linspace(-5, 5, 41)
    first, second = (estimator.length(s, t, (-5, 5)) for s in (x, y))
    assert np.abs(first - second).max() <= 1
    mechanism = InverseSensitivity(estimator=estimator, eps=0.7, bounds=(-5, 5), rho=rho)
    assert _log_ratio(mechanism.density(x), mechanism.density(y)) <= 0.7 + 1e-9


@pytest.mark.parametrize("name", ["median", "trimmed", "winsorised"])
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_the_mechanism_is_private_and_not_in_vain(name: str, rho: float) -> None:
    mechanism = InverseSensitivity(estimator=STATISTICS[name][0], eps=1.0, bounds=(0, 4), rho=rho)
    worst = dp_audit_exact(mechanism.density, range(5), 5)
    assert 0.5 <= worst <= 1 + 1e-9


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_the_density_is_that_of_counts_on_a_grid(rho: float) -> None:
    """Counts at the middles of cells, their least value within rho, and exp(-eps len / 2), all on a fine lattice."""
    x, step = np.array([0.0, 1.0, 1.0, 3.0, 4.0]), 0.01
    t = np.arange(0, 4, step) + step / 2
    length = np.maximum(np.maximum((x[:, None] < t).sum(0) - 2, 3 - (x[:, None] <= t).sum(0)), 0)
    length[(t > 1 - step) & (t < 1 + step)] = 0  # the median itself, a point
    reach = round(rho / step)
    smooth = [length[max(i - reach, 0) : i + reach + 1].min() for i in range(len(t))]
    weight = np.exp(-0.9 * np.array(smooth if reach else np.where(length == 0, 1, length)) / 2)
    found = InverseSensitivity(eps=0.9, bounds=(0, 4), rho=rho).density(x).pdf(t)
    assert np.abs(found - weight / (weight.sum() * step))[np.abs((t - rho) % 1 - 0.5) < 0.45].max() < 0.01


def test_the_audit_sees_a_leak_and_a_gap_in_the_support() -> None:
    def mean(x: np.ndarray) -> PiecewiseConstant:
        return PiecewiseConstant(np.array([x.mean() - 1, x.mean() + 1]), np.zeros(1))

    assert dp_audit_exact(mean, range(3), 2) == math.inf
    assert dp_audit_exact(lambda x: PiecewiseConstant(np.array([0.0, 1]), np.zeros(1)), range(3), 2) == 0
    assert len(list(neighbours(range(3), 1))) == 3


def test_without_smoothing_the_median_is_the_exponential_mechanism_on_ranks() -> None:
    """For odd n the score of IBM diffprivlib's median, -|#{x < t} - n / 2| on each interval, differs by a constant."""
    x = np.sort(np.random.default_rng(0).normal(size=101).clip(-2, 2))
    edges = np.concatenate(([-2.0], x, [2.0]))
    weight = np.exp(-0.8 / 2 * np.abs(np.arange(102) - 101 / 2)) * np.diff(edges)
    middle = ((edges[1:] + edges[:-1]) / 2)[weight > 0]
    ours = InverseSensitivity(eps=0.8, bounds=(-2, 2)).density(x).pdf(middle)
    expected = (weight / weight.sum() / np.where(np.diff(edges) > 0, np.diff(edges), 1))[weight > 0]
    assert np.abs(ours - expected).max() < 1e-10


@statistics
def test_density_integrates_to_one_and_finds_the_statistic(name: str) -> None:
    estimator, reference = STATISTICS[name]
    x = np.random.default_rng(1).normal(2, 0.7, 50)
    density = InverseSensitivity(estimator=estimator, eps=1.0, bounds=(-3, 7), rho=0.01).density(x)
    width = np.diff(density.edges)
    assert abs((density.pdf((density.edges[1:] + density.edges[:-1]) / 2) * width).sum() - 1) < 1e-10
    assert density.cdf(density.edges[-1]) == pytest.approx(1, abs=1e-12)
    sure = InverseSensitivity(estimator=estimator, eps=200.0, bounds=(-3, 7), rho=1e-6).sample(x, seed=0, size=20)
    assert np.abs(sure - reference(x)).max() <= 2e-6


def test_far_pieces_do_not_underflow() -> None:
    density = InverseSensitivity(eps=50.0, bounds=(-1e6, 1e6), rho=1e-9).density(np.zeros(2001))
    assert density.log_pdf(1e5) == pytest.approx(-25.0 * 1001 - math.log(2e-9), rel=1e-6)
    assert abs(density.mass.sum() - 1) < 1e-10


def test_draws_follow_the_density() -> None:
    x = np.array([0.0, 0.0, 1.0, 2.0, 2.0, 3.5])
    density = InverseSensitivity(eps=0.5, bounds=(-1, 5), rho=0.2).density(x)
    assert stats.kstest(density.sample(4000, seed=0), density.cdf).pvalue > 0.01
    assert (density.sample(5, seed=1) == density.sample(5, seed=1)).all()


def test_ties_need_smoothing() -> None:
    """Atoms at the median leave no width to it: without rho the draw is anywhere."""
    x = np.zeros(501)
    without, with_rho = (
        np.abs(InverseSensitivity(bounds=(-100, 100), rho=r).sample(x, seed=0, size=50)) for r in (0.0, 0.01)
    )
    assert np.median(without) > 10
    assert with_rho.max() <= 0.01


def test_snap_rounds_draws_to_a_grid_that_data_do_not_choose() -> None:
    drawn = InverseSensitivity(bounds=(-3, 3), snap=0.25).sample(np.arange(-3.0, 4), seed=0, size=30)
    assert np.equal(drawn % 0.25, 0).all()


def test_short_forms() -> None:
    x = np.random.default_rng(2).normal(size=2000)
    assert abs(private_median(x, 1.0, (-50, 50), seed=0)) < 0.1
    assert abs(private_quantile(x, 0.9, 1.0, (-50, 50), seed=0) - 1.2816) < 0.2
    assert abs(private_trimmed_mean(x, 1.0, 0.1, (-50, 50), seed=0)) < 0.1
    assert abs(laplace_mean(x, 1.0, (-4, 4), seed=0)) < 0.2
    noise = np.array([laplace_mean(np.zeros(10), 0.5, (-2, 3), seed=s) for s in range(400)])
    assert stats.kstest(noise, stats.laplace(scale=1.0).cdf).pvalue > 0.01


def gaussian_median(tau: float, n: int = 300, beta: float = 0.05) -> float:
    share = 0.5 + tau + math.sqrt(math.log(2 / beta) / (2 * n))
    return float(stats.norm.ppf(share)) if share < 1 else math.inf


def test_predicted_error_solves_its_equation_and_the_bound_is_the_same() -> None:
    found = predicted_error(gaussian_median, 300, 1, 1.0, 100.0, 0.05)
    a = found / 2
    tau = 2 / 300 * (math.log((100 + a) / a) + math.log(20))
    assert gaussian_median(tau) == pytest.approx(a, abs=1e-9)
    mechanism = InverseSensitivity(bounds=(-100, 100), rho=a)
    assert mechanism.error_bound(gaussian_median, 300, 0.05) == pytest.approx(found, abs=1e-9)
    assert predicted_error(gaussian_median, 20, 5, 0.1, 100.0, 0.05) == math.inf
    assert predicted_error(gaussian_median, 300, 3, 1.0, 100.0, 0.05) > found
    drawn = [abs(mechanism.sample(np.random.default_rng(s).normal(size=300), seed=s)[0]) <= found for s in range(100)]
    assert np.mean(drawn) >= 0.9


def test_a_private_estimator_is_robust() -> None:
    """Corrupting k points multiplies the chance of failing by e^(eps k) at most, here from exact densities."""
    x = np.random.default_rng(3).normal(size=60)
    mechanism = InverseSensitivity(eps=0.5, bounds=(-20, 20), rho=0.1)

    def failure(k: int) -> float:
        density = mechanism.density(np.concatenate((np.full(k, 20.0), np.sort(x)[k:])))
        return float(density.cdf(-2.0) + 1 - density.cdf(2.0))

    start = failure(0)
    assert all(failure(k) <= start * math.exp(0.5 * k) * (1 + 1e-9) for k in range(1, 20))
    k = robustness_from_privacy(0.5, start, 0.25)
    assert k == math.floor(math.log(0.25 / start) / 0.5) >= 1
    assert failure(k) <= 0.25
    assert robustness_from_privacy(1.0, 0.1, 0.1) == 0


@pytest.mark.parametrize("estimator", [Quantile(), TrimmedMean(trim=0.25)])
def test_the_truncated_form_is_private_on_a_universe_of_two(estimator: OrderStatistic) -> None:
    """Exact hockey-stick divergence of the whole mechanism, failing included, over all neighbours of 80 points."""
    n, eps, delta = 80, 3.0, 0.02
    mechanism = TruncatedSensitivity(estimator=estimator, eps=eps, delta=delta, rho=1.0, ratio=2.0, bounds=(-9, 9))
    grid = np.linspace(-12, 12, 4801)
    middle, width = (grid[1:] + grid[:-1]) / 2, grid[1] - grid[0]

    def outcome(count: int) -> np.ndarray:
        x = np.repeat([0.0, 5.0], [n - count, count])
        passed = mechanism.pass_probability(x)
        shares = mechanism.density(x).pdf(middle) * width * passed if passed else np.zeros(len(middle))
        return np.append(shares, 1 - passed)

    outcomes = [outcome(c) for c in range(n + 1)]
    divergence = max(
        max(np.maximum(p - math.exp(eps) * q, 0).sum(), np.maximum(q - math.exp(eps) * p, 0).sum())
        for p, q in pairwise(outcomes)
    )
    assert outcomes[0][-1] < 0.05 < 0.95 < outcomes[n // 2][-1]
    assert divergence <= delta


def test_the_truncated_form_needs_no_range() -> None:
    x = np.random.default_rng(4).normal(1e7, 1.0, 3000)
    method = RobustToPrivate(eps=1.0, delta=1e-6, rho=0.1, bounds=(-math.inf, math.inf))
    assert abs(float(method.fit(x, seed=0).estimate_) - 1e7) < 0.5
    spread = np.concatenate((x[:60], x[:60] - 1e6))
    assert math.isnan(float(method.fit(spread, seed=0).estimate_))
    assert TruncatedSensitivity().margin(x[:50]) == 0
    assert TruncatedSensitivity().pass_probability(x[:50]) == 0


def test_columns_share_the_budget_and_clipping_is_told() -> None:
    x = np.random.default_rng(5).normal(size=(900, 2)) + np.array([1.0, -2.0])
    fitted = RobustToPrivate(eps=2.0, bounds=(-3, 3)).fit(x, seed=1)
    assert np.abs(fitted.estimate_ - np.array([1.0, -2.0])).max() < 0.3
    assert fitted.clipped_ == int((np.abs(x) > 3).sum())
    first = RobustToPrivate(eps=1.0, bounds=(-3, 3)).fit(x[:, 0], seed=1)
    assert first.estimate_ != np.asarray(fitted.estimate_)[1]


def test_tukey_in_one_dimension_is_an_exponential_mechanism_of_counts() -> None:
    x = np.array([[0.1], [0.2], [0.25], [0.9]])
    depth = TukeyMechanism(bounds=(0, 1), grid=11).fit(x)
    t = np.linspace(0, 1, 11)
    expected = np.minimum((x >= t).sum(0), (x <= t).sum(0))
    assert depth(t[:, None]).tolist() == expected.tolist()
    assert np.exp(depth.log_probabilities()).sum() == pytest.approx(1)


def test_tukey_is_private_on_enumerated_neighbours() -> None:
    mechanism = TukeyMechanism(eps=1.0, bounds=(0, 1), grid=5, directions=16)
    corners = [np.array(c, float) for c in product((0.0, 0.5, 1.0), repeat=2)]
    worst = 0.0
    for rest in ([0, 4, 8], [2, 2, 6], [1, 4, 5]):
        base = [mechanism.fit(np.stack([corners[i] for i in (*rest, last)])).log_probabilities() for last in range(9)]
        worst = max(worst, *(float(np.abs(a - b).max()) for a, b in combinations(base, 2)))
    assert 0.5 <= worst <= 1 + 1e-9


@pytest.mark.parametrize("d", [2, 3])
def test_tukey_finds_the_centre_despite_corruption(d: int) -> None:
    x = np.random.default_rng(6).normal(size=(400, d)) + 1
    x[:40] = 10.0
    drawn = TukeyMechanism(eps=1.0, bounds=(-10, 10)).fit(x).sample(seed=0)
    assert drawn.shape == (d,)
    assert np.linalg.norm(drawn - 1) < 1.0


def test_hit_and_run_agrees_with_the_lattice() -> None:
    """The chain in the plane, where the density is known."""
    x = np.random.default_rng(7).normal(size=(20, 2)) * 0.3
    depth = TukeyMechanism(eps=1.0, bounds=(-1, 1), grid=41, steps=60, directions=24).fit(x)
    drawn = np.array([depth._hit_and_run(np.random.default_rng(s)) for s in range(150)])
    nodes, p = depth.nodes(), np.exp(depth.log_probabilities())
    assert np.abs(drawn.mean(0) - p @ nodes).max() < 0.15
    assert np.abs((drawn**2).mean(0) - p @ nodes**2).max() < 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: InverseSensitivity(eps=0.0),
        lambda: InverseSensitivity(bounds=(1, -1)),
        lambda: InverseSensitivity(bounds=(-math.inf, 1)),
        lambda: InverseSensitivity(rho=-1.0),
        lambda: InverseSensitivity().density(np.array([])),
        lambda: InverseSensitivity().density(np.array([0.0, math.nan])),
        lambda: InverseSensitivity().density(np.zeros((2, 2))),
        lambda: InverseSensitivity().error_bound(gaussian_median, 10, 0.1),
        lambda: TruncatedSensitivity(delta=0.0),
        lambda: TruncatedSensitivity(delta=1.0),
        lambda: RobustToPrivate(delta=0.1),
        lambda: RobustToPrivate(eps=-1.0),
        lambda: RobustToPrivate().fit(np.zeros((0, 2)), seed=0),
        lambda: TukeyMechanism(directions=1),
        lambda: TukeyMechanism().fit(np.zeros((4, 6))),
        lambda: Quantile(q=1.5),
        lambda: TrimmedMean(trim=0.5),
        lambda: ClippedMean(low=2, high=1),
        lambda: PiecewiseConstant(np.array([0.0, 0.0]), np.zeros(1)),
        lambda: PiecewiseConstant(np.array([0.0, 1.0]), np.zeros(2)),
        lambda: laplace_mean(np.zeros(3), 0.0, (0, 1), seed=0),
        lambda: laplace_mean(np.zeros(3), 1.0, (1, 0), seed=0),
        lambda: predicted_error(gaussian_median, 0, 1, 1.0, 1.0, 0.1),
        lambda: robustness_from_privacy(1.0, 0.2, 0.1),
        lambda: dp_audit_exact(InverseSensitivity().density, [0.0], 3),
    ],
)
def test_bad_input(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="expected"):
        make()


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, math.inf), (math.nan, 1.0)])
def test_the_laplace_mean_needs_finite_bounds(bounds: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="bounds"):
        laplace_mean(np.arange(5.0), 1.0, bounds, seed=0)
