"""What the shams of aggregate-responses change, and the search that shares no code with the method."""

from __future__ import annotations

import numpy as np

from assay.losses import AggregateLinearRegression
from assay.papers.aggregate_responses import _augmented, _MissingBagSize, _PerUserNoise, _searched
from assay.privacy import AggregateLaplace


def test_missing_bag_size_is_the_estimator_at_k_times_rho() -> None:
    rng = np.random.default_rng(0)
    x, bag = rng.normal(size=(60, 4)), np.arange(60) // 5
    means = rng.normal(size=12)
    sham = _MissingBagSize(rho=0.1, intercept=False).fit(x, bag, means)
    assert np.allclose(sham.coef_, AggregateLinearRegression(rho=0.5, intercept=False).fit(x, bag, means).coef_)


def test_per_user_noise_is_k_times_as_large() -> None:
    size = np.array([1.0, 4.0, 10.0])
    assert np.allclose(_PerUserNoise(eps=2.0).scale(size), size * AggregateLaplace(eps=2.0).scale(size))


def test_exact_checks_tell_the_sham() -> None:
    real, sham = (_augmented(rule, 1) for rule in (AggregateLinearRegression, _MissingBagSize))
    assert max(real.values()) < 1e-10
    assert min(sham.values()) > 1e-3


def test_search() -> None:
    assert [_searched(eps) for eps in (0.5, 5.0)] == [12, 1]
