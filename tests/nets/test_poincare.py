"""The Poincare ball against closed forms, limits and its own identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.nets.poincare import (
    HyperbolicMLR,
    ToPoincare,
    dist,
    expmap,
    expmap0,
    logmap0,
    mobius_add,
    poincare_mean,
    project,
)
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

curvatures = st.floats(0.05, 3.0)


def points(c: float, seed: int, n: int = 20, d: int = 4) -> torch.Tensor:
    g = torch_rng(seed, "points")
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=torch.float64), dim=1)
    return x * torch.rand(n, 1, generator=g, dtype=torch.float64) * 0.95 / math.sqrt(c)


@given(curvatures, st.integers(0, 99))
@settings(max_examples=25)
def test_identities(c: float, seed: int) -> None:
    x, y = points(c, seed), points(c, seed + 100)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(expmap0(logmap0(x, c), c), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(mobius_add(-x, mobius_add(x, y, c), c), y, rtol=0, atol=1e-9)
    torch.testing.assert_close(mobius_add(zero, y, c), y)
    torch.testing.assert_close(expmap(zero, y, c), expmap0(y, c))
    torch.testing.assert_close(dist(x, y, c), dist(y, x, c), rtol=1e-7, atol=1e-9)
    gap, ends = (x - y).square().sum(1), [1 - c * z.square().sum(1) for z in (x, y)]
    closed = torch.acosh(1 + 2 * c * gap / (ends[0] * ends[1])) / math.sqrt(c)
    torch.testing.assert_close(dist(x, y, c), closed, rtol=1e-7, atol=1e-7)
    far = 2 / math.sqrt(c) * torch.atanh(math.sqrt(c) * x.norm(dim=1))
    torch.testing.assert_close(dist(zero, x, c), far, rtol=1e-9, atol=1e-12)


def test_a_step_along_the_tangent_has_its_length() -> None:
    c, p, u = 0.7, points(0.7, 0, 6), 0.1 * points(0.7, 1, 6)
    factor = 2 / (1 - c * p.square().sum(1))
    torch.testing.assert_close(dist(p, expmap(p, u, c), c), factor * u.norm(dim=1), rtol=1e-8, atol=0)


def test_flat_limits() -> None:
    c, g = 1e-9, torch_rng(0, "flat")
    x, y = (torch.randn(9, 5, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(mobius_add(x, y, c), x + y, rtol=0, atol=1e-6)
    torch.testing.assert_close(dist(x, y, c), 2 * (x - y).norm(dim=1), rtol=0, atol=1e-6)
    with seeded(0, "mlr"):
        mlr = HyperbolicMLR(5, 3, c).double()
    expected = 4 * (x @ mlr.normal.T - (mlr.normal * mlr.point).sum(1))
    torch.testing.assert_close(mlr(x), expected, rtol=0, atol=1e-5)


def test_logits_are_signed_distances_to_hyperplanes() -> None:
    c = 0.5
    with seeded(0, "mlr"):
        mlr = HyperbolicMLR(4, 2, c).double()
    with torch.no_grad():
        place = expmap0(mlr.point, c)
        across = torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=torch.float64)
        normal = mlr.normal[:1]
        across = across - (across @ normal.T) / normal.square().sum() * normal  # along the plane through the point
        on = mobius_add(place[:1], 0.3 * across, c)
        assert float(mlr(on)[0, 0].abs()) < 1e-9
        ahead = mobius_add(place[:1], 0.2 * normal, c)
        assert float(mlr(ahead)[0, 0]) > 0
        x = points(c, 3, 5)
        z = mobius_add(-place[:1], x, c)
        length = normal.norm()
        sine = 2 * math.sqrt(c) * (z @ normal.T)[:, 0] / ((1 - c * z.square().sum(1)) * length)
        plane = torch.asinh(sine) / math.sqrt(c)  # Ganea et al., theorem 5
        slope = mlr(x)[:, 0] / plane
        torch.testing.assert_close(slope, (2 * length).expand(5))  # lambda_p |a_k (1 - c |p|^2)| = 2 |a_k|


def test_mean_of_points() -> None:
    c, x = 0.8, points(0.8, 0, 2, 3)
    middle = poincare_mean(x, c)
    assert float(dist(x[0], middle, c)) == pytest.approx(float(dist(x[1], middle, c)), rel=1e-8)
    assert float(dist(x[0], middle, c) + dist(middle, x[1], c)) == pytest.approx(float(dist(x[0], x[1], c)), rel=1e-8)
    torch.testing.assert_close(poincare_mean(x[:1], c), x[0])
    with pytest.raises(InputError, match="norm"):
        poincare_mean(torch.ones(2, 3), 1.0)


def test_clipping_keeps_gradients_alive_far_out() -> None:
    slopes = {}
    for r in (2.0, None):
        enter = ToPoincare(8, 0.1, r).double()
        u = 100 * torch.nn.functional.normalize(torch.ones(1, 8, dtype=torch.float64), dim=1)
        u = u + torch.arange(8, dtype=torch.float64)
        u.requires_grad_()
        x = enter(u)
        assert float(x.detach().norm()) < 1 / math.sqrt(0.1)
        (grad,) = torch.autograd.grad(x[0, 0], u)
        slopes[r] = float(grad.norm())
    assert slopes[2.0] > 100 * slopes[None]


def test_gradient_is_scaled_to_the_metric_and_the_base_point_learns() -> None:
    enter = ToPoincare(3, 0.4, None).double()
    u = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64, requires_grad=True)
    x = enter(u)
    (found,) = torch.autograd.grad(x.sum(), u, retain_graph=True)
    (plain,) = torch.autograd.grad(expmap0(u, 0.4).sum(), u)
    scale = (1 - 0.4 * float(x.detach().square().sum())) ** 2 / 4
    torch.testing.assert_close(found, scale * plain)
    x.sum().backward()
    assert enter.base.grad is not None
    assert float(enter.base.grad.abs().max()) > 0


def test_projection_and_bad_options() -> None:
    far = project(torch.full((2, 3), 50.0), 0.25)
    np.testing.assert_allclose(far.norm(dim=1), 0.999 * 2, rtol=1e-6)
    near = torch.full((1, 3), 0.1)
    assert torch.equal(project(near, 0.25), near)
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="c="):
            HyperbolicMLR(2, 2, bad)
    with pytest.raises(InputError, match="clip_r"):
        ToPoincare(2, 0.1, 0.0)
