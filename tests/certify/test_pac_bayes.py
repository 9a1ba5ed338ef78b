"""PAC-Bayes: closed forms, the duality between Catoni's bound and the inverse kl, and exact coverage."""

import math

import numpy as np
import pytest
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
    assert just_below <= q or float(binary_kl(q, just_below)) <= budget + 1e-15  # what its difference of logs rounds


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
