"""Losses on bags and the regression that minimises them: identities, closed forms, simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.losses import (
    AggregateLinearRegression,
    BagLoss,
    InstanceBagLoss,
    InterpolatedBagLoss,
    interpolated_risk,
    optimal_interpolation,
)
from assay.runtime.errors import InputError

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def bags(size: list[int], seed: int = 0, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    bag = torch.repeat_interleave(torch.arange(len(size)), torch.tensor(size))
    bag = bag[torch.randperm(len(bag), generator=g)]
    pred = torch.randn(len(bag), *shape, generator=g, dtype=torch.float64)
    return pred, torch.randn(len(size), *shape, generator=g, dtype=torch.float64), bag


class TestLosses:
    @given(sizes, st.floats(0, 2))
    @settings(max_examples=40, deadline=None, derandomize=True)
    def test_squares_are_bag_level_plus_the_variance_within(self, size: list[int], rho: float) -> None:
        f, y, bag = bags(size)
        within = torch.stack([f[bag == a].var(correction=0) for a in range(len(size))]).mean()
        mean = torch.stack([f[bag == a].mean() for a in range(len(size))])
        expected = (mean - y).square().mean() + rho * within
        assert float(InterpolatedBagLoss(rho)(f, y, bag)) == pytest.approx(float(expected), abs=1e-12)

    @given(sizes)
    @settings(max_examples=30, deadline=None, derandomize=True)
    def test_cross_entropy_by_loops_and_jensen(self, size: list[int]) -> None:
        z, y, bag = bags(size, shape=(3,))
        p, y = z.softmax(1), y.softmax(1)
        level = torch.stack([-(y[a] * p[bag == a].mean(0).log()).sum() for a in range(len(size))]).mean()
        each = torch.stack([-(y[a] * p[bag == a].log()).sum(1).mean() for a in range(len(size))]).mean()
        assert float(BagLoss("cross-entropy")(z, y, bag)) == pytest.approx(float(level))
        assert float(InstanceBagLoss("cross-entropy")(z, y, bag)) == pytest.approx(float(each))
        assert each >= level - 1e-12

    def test_bags_of_one_are_plain_losses_for_every_rho(self) -> None:
        f, y, bag = bags([1] * 6, shape=(2,))
        plain = torch.nn.functional.mse_loss(f, y[bag])
        for rho in (0.0, 0.3, 1.0, 2.0):
            assert float(InterpolatedBagLoss(rho)(f, y, bag)) == pytest.approx(float(plain))

    def test_reductions_functions_and_gradients(self) -> None:
        f, y, bag = bags([2, 3, 1])
        each = InterpolatedBagLoss(0.2, reduction="none")(f, y, bag)
        assert each.shape == (3,)
        assert torch.allclose(InterpolatedBagLoss(0.2)(f, y, bag), each.mean())
        assert torch.allclose(InterpolatedBagLoss(0.2, reduction="sum")(f, y, bag), each.sum())
        assert torch.allclose(InterpolatedBagLoss(0.2, lambda a, b: (a - b) ** 2)(f, y, bag), each.mean())
        for loss, shape in ((InterpolatedBagLoss(0.2), ()), (InterpolatedBagLoss(0.2, "cross-entropy"), (3,))):
            p, t, b = bags([2, 3, 1], shape=shape)
            t = t.softmax(1) if shape else t
            assert torch.autograd.gradcheck(lambda z, loss=loss, t=t, b=b: loss(z, t, b), (p.requires_grad_(),))

    def test_finite_for_extreme_logits(self) -> None:
        z = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
        loss = InterpolatedBagLoss(0.5, "cross-entropy")(z, torch.tensor([[0.5, 0.5]]), torch.tensor([0, 0]))
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()

    def test_bad_input(self) -> None:
        f, y, bag = bags([2, 3, 1])
        loss = InterpolatedBagLoss()
        wrong = ((f[:0], y, bag[:0]), (f, y, bag[:-1]), (f, y, bag.float()), (f, y[:2], bag), (f * torch.nan, y, bag))
        for bad in wrong:
            with pytest.raises(InputError, match="expected"):
                loss(*bad)
        with pytest.raises(InputError, match="1 of 4 bags"):
            loss(f, torch.zeros(4).double(), bag)
        with pytest.raises(InputError, match="logits"):
            InterpolatedBagLoss(base="cross-entropy")(f, y, bag)
        for options in ({"rho": -0.1}, {"base": "hinge"}, {"reduction": "median"}):
            with pytest.raises(InputError):
                InterpolatedBagLoss(**options)  # type: ignore[arg-type]


def linear(n: int, d: int, k: int, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 2.0
    y = x @ np.arange(1, d + 1) + 5 + noise * rng.normal(size=n)
    bag = np.arange(n) // k
    return x, bag, np.bincount(bag, y) / np.bincount(bag)


class TestRegression:
    @pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
    def test_is_least_squares_on_augmented_rows(self, rho: float) -> None:
        x, bag, mean = linear(61, 4, 3)  # the last bag has one sample
        m, size = len(mean), np.bincount(bag)
        centre = np.array([x[bag == a].mean(0) for a in range(m)])
        rows = np.concatenate([centre / m**0.5, np.sqrt(rho / (m * size[bag]))[:, None] * (x - centre[bag])])
        expected = np.linalg.lstsq(rows, np.concatenate([mean / m**0.5, np.zeros(61)]), rcond=None)[0]
        found = AggregateLinearRegression(rho=rho, intercept=False).fit(x, bag, mean)
        assert np.allclose(found.coef_, expected, atol=1e-10)
        assert found.intercept_ == 0

    def test_intercept_and_prediction(self) -> None:
        x, bag, mean = linear(400, 3, 2, noise=0.0)
        found = AggregateLinearRegression(rho=0.0).fit(x, bag, mean)
        assert np.allclose(found.coef_, [1, 2, 3])
        assert found.intercept_ == pytest.approx(5)
        assert np.allclose(found.predict(x[:5]), x[:5] @ [1, 2, 3] + 5)

    def test_the_order_of_samples_does_not_matter_and_inputs_stay(self) -> None:
        x, bag, mean = linear(60, 3, 4)
        kept = x.copy()
        order = np.random.default_rng(1).permutation(60)
        first, other = (
            AggregateLinearRegression(rho=0.2).fit(a, b, mean) for a, b in ((x, bag), (x[order], bag[order]))
        )
        assert np.allclose(first.coef_, other.coef_)
        assert (x == kept).all()

    def test_cv_takes_the_rho_of_least_held_out_error_of_bag_means(self) -> None:
        x, bag, mean = linear(400, 20, 8, noise=60.0)
        found = AggregateLinearRegression(seed=3).fit(x, bag, mean)
        assert 0 < found.rho_ < 1
        assert np.allclose(found.coef_, AggregateLinearRegression(rho=found.rho_).fit(x, bag, mean).coef_)
        quiet, q_bag, q_mean = linear(400, 3, 8, noise=0.0)
        assert AggregateLinearRegression().fit(quiet, q_bag, q_mean).rho_ == 0

    def test_ridge_and_singular(self) -> None:
        x, bag, mean = linear(40, 10, 8)
        with pytest.raises(InputError, match="singular"):
            AggregateLinearRegression(rho=0.0).fit(x, bag, mean)
        assert np.isfinite(AggregateLinearRegression(rho=0.0, ridge=0.1).fit(x, bag, mean).coef_).all()

    def test_bad_input(self) -> None:
        x, bag, mean = linear(40, 3, 4)
        method = AggregateLinearRegression(rho=0.1)
        for bad in ((x[:, 0], bag, mean), (x, bag[:-1], mean), (x, bag + 1, mean), (x, bag, mean * np.nan)):
            with pytest.raises(InputError, match="expected"):
                method.fit(*bad)
        with pytest.raises(InputError, match="each of 0 to 10"):
            method.fit(x, bag, np.append(mean, 0.0))
        for options in ({"rho": -1.0}, {"rho": "best"}, {"ridge": -1.0}, {"folds": 1}):
            with pytest.raises(InputError):
                AggregateLinearRegression(**options)


@pytest.mark.parametrize("scale", [1.0, 90.0, 1e4])
def test_cross_entropy_of_sure_predictions(scale: float) -> None:
    g = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(6, 3, generator=g)).requires_grad_()
    shares, bag = torch.rand(6, 3, generator=g).softmax(1), torch.arange(6)
    for loss in (InstanceBagLoss("cross-entropy"), BagLoss("cross-entropy")):  # bags of one
        found, expected = loss(logits, shares, bag), F.cross_entropy(logits, shares)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (found, expected)))
    log_mean = logits.detach().double().log_softmax(1).view(3, 2, 3).logsumexp(1) - math.log(2)
    expected = -(shares[:3] * log_mean).sum(1).mean()
    found = BagLoss("cross-entropy")(logits, shares[:3], torch.arange(6) // 2)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


class TestRisk:
    def test_special_cases(self) -> None:
        for rho in (0.0, 0.3, 1.0):  # bags of one: ordinary least squares
            assert interpolated_risk(40, 100, 1, rho, 2.0) == pytest.approx((0.0, 2 * 40 / 60))
        assert interpolated_risk(40, 100, 5, 0.0) == pytest.approx((0.0, 40 / 60))
        assert sum(interpolated_risk(40, 100, 5, 1e-9)) == pytest.approx(40 / 60, rel=1e-6)
        # Many samples: the estimate is theta / (1 + rho (k - 1)).
        for rho, k in ((1.0, 4), (0.2, 3)):
            expected = (1 - 1 / (1 + rho * (k - 1))) ** 2
            assert interpolated_risk(5, 10**7, k, rho).bias == pytest.approx(expected, rel=1e-5)
        assert interpolated_risk(40, 100, 5, 1e9) == pytest.approx((1.0, 0.0), abs=1e-6)

    def test_simulation(self) -> None:
        d, m, k, rho = 60, 90, 3, 0.2
        rng, errors = np.random.default_rng(0), []
        for _ in range(60):
            x, theta = rng.normal(size=(m * k, d)), rng.normal(size=d)
            theta /= np.linalg.norm(theta)
            means = (x @ theta + rng.normal(size=m * k)).reshape(m, k).mean(1)
            found = AggregateLinearRegression(rho=rho, intercept=False).fit(x, np.arange(m * k) // k, means)
            errors.append(((found.coef_ - theta) ** 2).sum())
        theory = sum(interpolated_risk(d, m, k, rho))
        assert abs(np.mean(errors) - theory) < max(4 * np.std(errors) / 60**0.5, 0.05 * theory)

    def test_optimum_beats_a_grid(self) -> None:
        for setting in ((100, 300, 10), (100, 80, 10), (20, 4000, 2)):
            best = optimal_interpolation(*setting)
            assert best.risk <= min(sum(interpolated_risk(*setting, r)) for r in np.geomspace(1e-6, 1, 300)) + 1e-9
            assert sum(interpolated_risk(*setting, best.rho)) == pytest.approx(best.risk)
        assert optimal_interpolation(10, 50, 1).rho == 0

    def test_bad_input(self) -> None:
        for bad in ((100, 80, 10, 0.0), (100, 100, 1, 0.5), (0, 5, 2, 0.1), (5, 10, 2, -0.1), (100, 40, 2, 0.5)):
            with pytest.raises(InputError, match="expected"):
                interpolated_risk(*bad)
        for sigma2 in (-1.0, float("nan")):
            with pytest.raises(InputError, match="sigma2="):
                interpolated_risk(5, 10, 2, 0.1, sigma2)
