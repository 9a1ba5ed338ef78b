"""Released bag means: their noise, the privacy that it buys exactly, and the bag size that it asks for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from assay.losses import interpolated_risk
from assay.privacy import AggregateLaplace, optimal_bag_size
from assay.runtime.errors import InputError


def test_noise_has_the_stated_scale_and_clipping_comes_first() -> None:
    y, bag = np.full(8000, 10.0), np.repeat(np.arange(2000), 4)
    noise = AggregateLaplace(eps=2.0, clip=1.5).release(y, bag, seed=0) - 1.5
    assert stats.kstest(noise, stats.laplace(scale=2 * 1.5 / (4 * 2.0)).cdf).pvalue > 0.01
    again = AggregateLaplace(eps=2.0, clip=1.5).release(y, bag, seed=0) - 1.5
    assert (noise == again).all()
    assert not (noise == AggregateLaplace(eps=2.0, clip=1.5).release(y, bag, seed=1) - 1.5).any()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_density_ratio_of_neighbours_is_exactly_exp_eps(k: int) -> None:
    method = AggregateLaplace(eps=0.7, clip=2.0)
    y = np.zeros(k)
    worst = y.copy()
    y[0], worst[0] = -9.0, 9.0  # one response, from one end of the range to the other
    means = [np.clip(v, -2, 2).mean() for v in (y, worst)]
    scale = float(method.scale(np.array([float(k)]))[0])
    at = np.linspace(-5, 5, 4001)
    ratio = stats.laplace(means[0], scale).logpdf(at) - stats.laplace(means[1], scale).logpdf(at)
    assert np.abs(ratio).max() == pytest.approx(0.7)


def test_best_bag_sizes() -> None:
    found = [optimal_bag_size(AggregateLaplace(eps=eps, clip=3.0), 3000, 100) for eps in (0.5, 1.0, 2.0, 5.0)]
    assert [f.k for f in found] == [12, 4, 2, 1]
    assert all(f.risk == min(f.curve.values()) for f in found)
    noise = 1 + 8 * 9 / 12 / 0.25
    assert sum(interpolated_risk(100, 250, 12, found[0].rho, noise)) == pytest.approx(found[0].risk)
    assert optimal_bag_size(AggregateLaplace(eps=1e6), 3000, 100).k == 1


def test_bad_input() -> None:
    for options in ({"eps": 0.0}, {"clip": -1.0}, {"eps": float("inf")}):
        with pytest.raises(InputError, match="expected"):
            AggregateLaplace(**options)
    method = AggregateLaplace()
    for y, bag in ((np.ones(3), np.array([0, 2, 2])), (np.array([1.0, np.nan]), np.array([0, 1])), (np.ones(2), [0])):
        with pytest.raises(InputError, match="expected"):
            method.release(y, np.array(bag), seed=0)
    with pytest.raises(InputError, match="n=10"):
        optimal_bag_size(method, 10, 10)
