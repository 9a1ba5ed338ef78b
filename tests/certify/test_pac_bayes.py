"""PAC-Bayes bounds against hand values, closed forms and their order, and how often they fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
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
