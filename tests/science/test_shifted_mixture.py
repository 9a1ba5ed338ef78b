"""The shifted mixture: moments, nested draws, and the accuracy of a linear rule."""

from __future__ import annotations

import numpy as np
import pytest

from assay.runtime.errors import InputError
from assay.science import linear_accuracy, shifted_gmm


def test_means_shift_and_nesting() -> None:
    a, b = (shifted_gmm(m, n, 20, mu_norm=2.0, alpha=0.5, test=40_000, seed=3) for m, n in ((4, 1000), (10, 40_000)))
    assert np.array_equal(a.x, b.x[:4])
    assert np.array_equal(a.pool, b.pool[:1000])
    assert np.linalg.norm(a.mean) == pytest.approx(2.0)
    sign = np.where(np.arange(40_000) % 2 == 0, 1, -1)
    assert np.linalg.norm((sign[:, None] * b.pool).mean(0) - b.mean) == pytest.approx(1.0, abs=0.05)
    assert (b.y_test[:, None] * b.x_test).mean(0) == pytest.approx(b.mean, abs=0.03)


def test_accuracy_of_a_linear_rule_on_draws() -> None:
    data = shifted_gmm(2, 0, 8, sigma=1.5, test=100_000, seed=0)
    w = data.x[0]
    counted = np.mean(np.sign(data.x_test @ w) == data.y_test)
    assert counted == pytest.approx(linear_accuracy(w, data.mean, 1.5), abs=0.006)
    assert linear_accuracy(data.mean, data.mean) == pytest.approx(0.8413447, abs=1e-6)


def test_bad_numbers() -> None:
    for more in ({"m": 1}, {"n": -1}, {"sigma": 0.0}, {"alpha": -0.1}):
        with pytest.raises(InputError, match="expected"):
            shifted_gmm(**({"m": 4, "n": 4, "d": 2, "seed": 0} | more))
    with pytest.raises(InputError, match="expected"):
        linear_accuracy(np.zeros(3), np.ones(3))
