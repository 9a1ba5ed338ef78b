<<<<<<< HEAD
"""PAC-Bayes: closed forms, the duality between Catoni's bound and the inverse kl, and exact coverage."""
=======
"""PAC-Bayes bounds against hand values, closed forms and their order, and how often they fail."""

from __future__ import annotations
>>>>>>> smooth

import math

import numpy as np
import pytest
<<<<<<< HEAD
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.stats import binom, entropy

from assay.certify import binary_kl, catoni_bound, kl_inverse, maurer_bound, mcallester_bound, monte_carlo_bound
from assay.runtime.errors import InputError

rates, costs = st.floats(0, 1), st.floats(0, 20)


@given(rates, st.floats(0.001, 0.999))
def test_binary_kl_is_the_divergence_of_two_coins(q: float, p: float) -> None:
    assert float(binary_kl(q, p)) == pytest.approx(entropy([q, 1 - q], [p, 1 - p]), abs=1e-12)


@given(costs)
def test_inverse_at_the_ends_is_closed(budget: float) -> None:
    assert float(kl_inverse(0.0, budget)) == pytest.approx(-math.expm1(-budget), abs=1e-12)
    assert float(kl_inverse(1.0, budget)) == 1
    assert float(kl_inverse(0.25, 0.0)) == pytest.approx(0.25, abs=1e-7)


@given(rates, costs)
def test_inverse_spends_the_budget_and_never_less(q: float, budget: float) -> None:
    p = float(kl_inverse(q, budget))
    assert q <= p <= 1
    assert p == 1 or float(binary_kl(q, p)) >= budget - 1e-12
    just_below = p - 1e-9
    assert just_below <= q or float(binary_kl(q, just_below)) <= budget


@given(rates, costs, st.integers(8, 10_000), st.floats(0.001, 0.5))
def test_order_of_the_bounds(risk: float, kl: float, n: int, delta: float) -> None:
    tight, loose = float(maurer_bound(risk, kl, n, delta)), float(mcallester_bound(risk, kl, n, delta))
    assert risk <= tight <= min(loose, 1) + 1e-9
    assert tight <= float(maurer_bound(risk, kl + 1, n, delta)) + 1e-12
    assert loose == pytest.approx(risk + math.sqrt((kl + math.log(2 * math.sqrt(n) / delta)) / (2 * n)))


@pytest.mark.parametrize("risk", [0.02, 0.1, 0.4])
def test_the_best_strength_of_catoni_gives_the_inverse_kl(risk: float) -> None:
    n, kl, delta = 500, 12.0, 0.05
    found = optimize.minimize_scalar(
        lambda log_c: float(catoni_bound(risk, kl, n, delta, strength=math.exp(log_c))),
        bounds=(-6, 6),
        method="bounded",
    )
    assert found.fun == pytest.approx(float(kl_inverse(risk, (kl - math.log(delta)) / n)), abs=1e-6)


def test_catoni_without_errors_is_closed() -> None:
    expected = (1 - math.exp(-(3 + math.log(20)) / 100)) / (1 - math.exp(-2.0))
    assert float(catoni_bound(0.0, 3.0, 100, 0.05, strength=2.0)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5])
@pytest.mark.parametrize("n", [10, 60])
def test_coverage_of_one_hypothesis_by_the_binomial_law(p: float, n: int) -> None:
    errors, delta = np.arange(n + 1), 0.1
    weight = binom.pmf(errors, n, p)
    for bound in (
        maurer_bound(errors / n, 0.0, n, delta),
        mcallester_bound(errors / n, 0.0, n, delta),
        catoni_bound(errors / n, 0.0, n, delta, strength=1.5),
        monte_carlo_bound(errors / n, n, delta),
    ):
        assert weight[bound < p].sum() <= delta


def test_coverage_of_gibbs_posteriors_that_saw_the_samples() -> None:
    rng, n, delta = np.random.default_rng(0), 40, 0.2
    p = np.linspace(0.1, 0.6, 25)
    risk = rng.binomial(n, p, (4000, 25)) / n
    q = np.exp(-30 * risk)
    q /= q.sum(1, keepdims=True)
    kl = entropy(q, np.full(25, 1 / 25), axis=1)
    mean, true = (q * risk).sum(1), q @ p
    assert (mean < true).mean() > 0.5  # the posterior flatters itself
    for bound in (maurer_bound(mean, kl, n, delta), catoni_bound(mean, kl, n, delta, strength=1.0)):
        assert (bound < true).mean() <= delta


def test_bad_input() -> None:
    with pytest.raises(InputError, match="q in"):
        kl_inverse(1.5, 0.1)
    with pytest.raises(InputError, match="budget"):
        kl_inverse(0.5, math.nan)
    with pytest.raises(InputError, match="n >= 8"):
        maurer_bound(0.1, 1.0, 7)
    with pytest.raises(InputError, match="delta"):
        mcallester_bound(0.1, 1.0, 100, 1.0)
    with pytest.raises(InputError, match="kl >= 0"):
        catoni_bound(0.1, -1.0, 100)
    with pytest.raises(InputError, match="strength"):
        catoni_bound(0.1, 1.0, 100, strength=0.0)
    with pytest.raises(InputError, match="n = 0"):
        monte_carlo_bound(0.1, 0)
=======
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from torch.distributions import Normal, kl_divergence

from assay.certify import (
    binary_kl,
    gaussian_kl,
    kl_inverse,
    occam_binomial,
    occam_kl,
    pac_bayes_kl,
    pac_bayes_mcallester,
)
from assay.runtime.errors import InputError

rates = st.floats(0, 1)


def test_kl_of_coins_by_hand() -> None:
    assert float(binary_kl(0.25, 0.5)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert binary_kl([0.0, 1.0, 0.0], [0.0, 1.0, 0.3]).tolist() == pytest.approx([0, 0, -math.log(0.7)])
    assert math.isinf(binary_kl(0.5, 1.0))


@settings(deadline=None, max_examples=100)
@given(rates, st.floats(1e-6, 20))
def test_the_inverse_attains_the_divergence(q: float, c: float) -> None:
    upper, lower = float(kl_inverse(q, c)), float(kl_inverse(q, c, "lower"))
    assert 0 <= lower <= q <= upper <= 1
    for p in (upper, lower):
        if 1e-9 < p < 1 - 1e-9:
            assert float(binary_kl(q, p)) == pytest.approx(c, rel=1e-5, abs=1e-9)
    assert upper <= q + math.sqrt(c / 2) + 1e-9  # Pinsker


def test_ends_of_the_inverse() -> None:
    c = np.array([0.1, 1.0, 30.0])
    assert np.allclose(kl_inverse(0.0, c), 1 - np.exp(-c), atol=1e-12)
    assert kl_inverse(1.0, c).tolist() == [1.0, 1.0, 1.0]
    assert np.allclose(kl_inverse(1.0, c, "lower"), np.exp(-c), atol=1e-12)
    assert kl_inverse([0.0, 0.3], 0.0).tolist() == pytest.approx([0, 0.3])


def test_mcallester_by_hand() -> None:
    # KL = 40, n = 50,000, delta = 0.05: ln(n / delta) = 13.816
    expected = 0.023 + math.sqrt((40 + 13.815511 + 2) / 99_999)
    assert float(pac_bayes_mcallester(0.023, 40, 50_000)) == pytest.approx(expected, abs=1e-8)
    assert float(pac_bayes_mcallester(0.9, 1e6, 100)) == 1


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 5000), rates, st.floats(0, 60), st.floats(0.001, 0.5))
def test_each_tighter_bound_is_below_each_looser_one(n: int, share: float, divergence: float, delta: float) -> None:
    wrong = round(share * n)
    bounds = [
        float(occam_binomial(wrong, divergence, n, delta)),
        float(occam_kl(wrong / n, divergence, n, delta)),
        float(pac_bayes_kl(wrong / n, divergence, n, delta)),
    ]
    assert wrong / n <= bounds[0] + 1e-12
    assert bounds[0] <= bounds[1] + 1e-9
    assert bounds[1] <= bounds[2] + 1e-9
    assert bounds[1] <= float(pac_bayes_mcallester(wrong / n, divergence, n, delta)) + 1e-9


@pytest.mark.parametrize(("wrong", "n"), [(0, 50), (7, 50), (49, 50), (50, 50)])
def test_binomial_inversion_has_its_tail(wrong: int, n: int) -> None:
    bound = float(occam_binomial(wrong, 2.0, n, 0.05))
    if wrong == n:
        assert bound == 1
    else:
        assert binom.cdf(wrong, n, bound) == pytest.approx(0.05 * math.exp(-2), rel=1e-6)
        assert bound == pytest.approx(
            binomtest(wrong, n).proportion_ci(1 - 0.1 * math.exp(-2), method="exact").high, abs=1e-9
        )


def test_bounds_hold_for_the_best_of_many_classifiers() -> None:
    """200 classifiers that err on 90% of pure noise: the one with the fewest errors among 50, and its bounds."""
    rng = np.random.default_rng(0)
    best = rng.binomial(50, 0.9, (2000, 200)).min(1)
    divergence = math.log(200)
    for bound in (
        occam_binomial(best, divergence, 50),
        occam_kl(best / 50, divergence, 50),
        pac_bayes_kl(best / 50, divergence, 50),
        pac_bayes_mcallester(best / 50, divergence, 50),
    ):
        failed = int((bound < 0.9).sum())
        assert binomtest(failed, 2000, 0.05, alternative="greater").pvalue > 1e-3
    naive = occam_binomial(best, 0.0, 50)  # as if it had not been chosen
    assert float((naive < 0.9).mean()) > 0.5


def test_gaussian_divergence_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    mean, other = (torch.randn(30, generator=g, dtype=torch.float64) for _ in range(2))
    deviation, wide = (0.1 + torch.rand(30, generator=g, dtype=torch.float64) for _ in range(2))
    expected = float(kl_divergence(Normal(mean, deviation), Normal(other, wide)).sum())
    assert gaussian_kl(mean, deviation, other, wide) == pytest.approx(expected, rel=1e-12)
    assert gaussian_kl(np.zeros(4), 1.0) == 0


@pytest.mark.parametrize("bound", [pac_bayes_kl, pac_bayes_mcallester, occam_kl])
def test_bad_input(bound: object) -> None:
    for error, divergence, n, delta in ((1.2, 1, 10, 0.1), (0.1, -1, 10, 0.1), (0.1, 1, 0, 0.1), (0.1, 1, 10, 1.0)):
        with pytest.raises(InputError):
            bound(error, divergence, n, delta)  # type: ignore[operator]
    with pytest.raises(InputError):
        occam_binomial(2.5, 1, 10)
    with pytest.raises(InputError):
        kl_inverse(0.1, -1.0)
    with pytest.raises(InputError):
        gaussian_kl(0.0, 0.0)
>>>>>>> smooth
