"""The closed forms against draws and against the worst case of a linear rule."""

from __future__ import annotations

import numpy as np
import pytest

from assay.runtime.errors import InputError
from assay.science import adversarial_separability, balance_price, imbalanced_gaussian_risk


@pytest.mark.parametrize(("delta", "K", "rho"), [(1.0, 50.0, 10.0), (4.0, 50.0, 1.0), (2.0, 5.0, 5.0)])
def test_errors_are_those_of_the_weighted_rule_on_draws(delta: float, K: float, rho: float) -> None:
    """The rule weighs likelihoods by prior and cost; nothing of its threshold is assumed."""
    rng, mu = np.random.default_rng(0), np.full(3, delta / 2 / np.sqrt(3))
    for y, expected in zip((1, -1), imbalanced_gaussian_risk(delta, K, rho), strict=True):
        x = y * mu + rng.normal(size=(100_000, 3))
        ratio = np.log(K) - np.log(rho) - ((x - mu) ** 2).sum(1) / 2 + ((x + mu) ** 2).sum(1) / 2
        assert np.mean(np.sign(ratio) != y) == pytest.approx(expected, abs=0.006)


def test_the_gap_and_the_price_fall_with_separability() -> None:
    deltas = np.linspace(0.5, 8, 40)
    gaps = [np.subtract(*imbalanced_gaussian_risk(d, 20.0)[::-1]) for d in deltas]
    prices = [balance_price(d, 20.0) for d in deltas]
    assert (np.diff(gaps) < 0).all()
    assert (np.diff(prices) < 0).all()


def test_full_weight_balances_the_errors() -> None:
    major, minor = imbalanced_gaussian_risk(2.5, 30.0, 30.0)
    assert major == pytest.approx(minor, abs=1e-15)


def test_the_adversary_takes_eps_from_every_coordinate() -> None:
    """Worst case of the rule with equal weights: x - eps y, on draws."""
    d, eta, eps = 9, 0.5, 0.2
    x = eta + np.random.default_rng(1).normal(size=(200_000, d))
    worst = (x - eps).sum(1) < 0
    assert worst.mean() == pytest.approx(
        imbalanced_gaussian_risk(adversarial_separability(d, eta, eps), 1.0)[0], abs=3e-3
    )
    assert adversarial_separability(d, eta, 0.0) == pytest.approx(2 * np.sqrt(d) * eta)


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (1.0, -1.0), (1.0, 2.0, 0.0), (np.nan, 1.0)])
def test_bad_input(numbers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected"):
        imbalanced_gaussian_risk(*numbers)
    with pytest.raises(InputError, match="expected"):
        adversarial_separability(4, 0.1, 0.2)
