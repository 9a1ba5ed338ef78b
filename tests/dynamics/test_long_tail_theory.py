"""Expected frequencies, the theorem on what not fitting costs, and the learners, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln

from assay.dynamics import (
    LongTailProblem,
    LongTailSample,
    excess_error_of_not_fitting,
    lookup_learner,
    tail_weight,
    tau,
)
from assay.runtime.errors import InputError


class TestTau:
    @given(st.floats(0.05, 5), st.integers(2, 400), st.integers(1, 300))
    @settings(max_examples=50, deadline=None, derandomize=True)
    def test_gamma_prior_is_a_ratio_of_beta_functions(self, a: float, N: int, n: int) -> None:
        seen = np.arange(min(n, 5) + 1)
        b = (N - 1) * a
        expected = np.exp(betaln(a + seen + 1, b + n - seen) - betaln(a + seen, b + n - seen))
        assert np.allclose(tau(seen, n, prior=("gamma", a), N=N), expected, rtol=1e-8)

    def test_monte_carlo_meets_the_closed_form(self) -> None:
        closed, drawn = (
            tau([0, 1, 2], 100, prior=("gamma", 0.3), N=50, method=m, samples=200_000) for m in ("closed", "mc")
        )
        assert np.allclose(closed, drawn, rtol=0.03)

    def test_equal_frequencies_and_two_levels_by_hand(self) -> None:
        for method in ("closed", "mc"):
            assert np.allclose(tau([0, 1, 7], 9, prior=[2.0], N=20, method=method), 1 / 20)
        a = np.array([0.02, 0.18])  # 10 points of weight 1 and 9, half of each
        expected = (a**3 * (1 - a) ** 4).sum() / (a**2 * (1 - a) ** 4).sum()
        assert tau([2], 6, prior=[1.0, 9.0], N=10)[0] == pytest.approx(expected)

    def test_a_tail_with_zeros_and_large_n(self) -> None:
        found = tau([0, 1, 50], 10**6, prior=[0.0, 1.0, 1e-4], N=1000)
        assert np.isfinite(found).all()
        assert (np.diff(found) >= 0).all()

    def test_lower_bound_of_the_lemma(self) -> None:
        for prior in ("zipf", ("gamma", 0.1), [1.0, 1e-3]):
            for n in (100, 1000):
                bound = tail_weight(prior, 500, 1 / (3 * n), 2 / n, samples=5000) / (5 * n)
                assert tau([1], n, prior=prior, N=500, method="mc", samples=5000)[0] >= bound

    def test_bad_input(self) -> None:
        for counts in ([-1], [11], [0.5], [], [[1]]):
            with pytest.raises(InputError, match="counts"):
                tau(counts, 10, N=5)
        for prior in ([], [-1.0, 2.0], [0.0], "pareto", ("gamma", 0.0), [float("nan")]):
            with pytest.raises(InputError, match="prior"):
                tau([1], 10, prior=prior, N=5)
        with pytest.raises(InputError, match="method"):
            tau([1], 10, N=5, method="exact")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="cannot be seen 3"):
            tau([3], 10, prior=[1.0], N=1)


class TestProblem:
    def test_theorem_on_average(self) -> None:
        problem = LongTailProblem(prior=("gamma", 0.05), N=400, n=200, n_classes=4)
        gaps: dict[int, list[float]] = {0: [], 1: []}
        for i in range(150):
            sample = problem.sample(seed=i)
            for ignore, found in gaps.items():
                h = lookup_learner(sample, 4, ignore=ignore, seed=i)
                found.append(sample.error(h) - problem.opt(sample) - problem.excess(sample, h))
        for found in gaps.values():
            assert abs(np.mean(found)) < 4 * np.std(found) / 150**0.5

    def test_sample_error_and_errn_by_hand(self) -> None:
        sample = LongTailSample(np.array([0.5, 0.3, 0.2]), np.array([1, 0, 2]), np.array([0, 0, 1]))
        h = np.array([1, 2, 0])
        assert sample.counts.tolist() == [2, 1, 0]
        assert sample.error(h) == pytest.approx(0.5)
        assert [sample.errn(h, k) for k in range(3)] == [1, 1, 0]
        assert excess_error_of_not_fitting(np.array([0.1, 0.2]), np.array([3.0, 1.0])) == pytest.approx(0.5)

    def test_sample_is_what_it_says(self) -> None:
        problem = LongTailProblem(prior=("gamma", 0.2), N=30, n=5000)
        sample, again = problem.sample(seed=3), problem.sample(seed=3)
        assert sample.frequency.sum() == pytest.approx(1)
        assert (sample.points == again.points).all()
        error = np.sqrt(sample.frequency * (1 - sample.frequency) / 5000)
        assert (np.abs(sample.counts / 5000 - sample.frequency) <= 5 * error + 1e-3).all()

    def test_lookup_knows_what_it_saw(self) -> None:
        sample = LongTailProblem(N=200, n=150).sample(seed=0)
        seen = sample.counts > 0
        h = lookup_learner(sample, 10, seed=1)
        assert (h[seen] == sample.labels[seen]).all()
        assert 0.7 < (h[~seen] != sample.labels[~seen]).mean() <= 1
        once = sample.counts == 1
        rare = lookup_learner(sample, 10, ignore=1, seed=1)
        assert (rare[sample.counts > 1] == sample.labels[sample.counts > 1]).all()
        assert (rare[once] != sample.labels[once]).mean() > 0.7

    def test_randomised_response_of_singletons(self) -> None:
        sample = LongTailSample(np.full(20_000, 1 / 20_000), np.zeros(20_000, int), np.arange(20_000))
        for eps in (0.5, 2.0):
            wrong = (lookup_learner(sample, 5, eps=eps, seed=0) != 0).mean()
            rate = 4 / (np.exp(eps) + 4)
            assert abs(wrong - rate) < 4 * (rate * (1 - rate) / 20_000) ** 0.5

    def test_bad_input(self) -> None:
        for options in ({"n": 0}, {"n_classes": 1}, {"N": 0}, {"prior": []}):
            with pytest.raises(InputError, match="expected"):
                LongTailProblem(**options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="eps"):
            lookup_learner(LongTailProblem().sample(seed=0), 10, eps=0.0, seed=0)
        with pytest.raises(InputError, match="one shape"):
            excess_error_of_not_fitting(np.ones(2), np.ones(3))
