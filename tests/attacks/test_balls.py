"""Projections, draws and directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from assay.attacks import L1, L2, Linf
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, torch_rng

BALLS = [Linf, L2, L1]
BOX = (0.0, 1.0)


def points(seed: int, d: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch_rng(seed, "points")
    x = torch.rand(4, d, generator=g, dtype=torch.float64).round(decimals=1)
    return x, *(x + torch.randn(4, d, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("cls", BALLS)
@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), eps=st.floats(0.0, 4.0))
def test_projection_is_inside_idempotent_and_never_expands(cls, seed, eps):
    ball, (x, u, v) = cls(eps), points(seed)
    p, q = ball.project(u.clone(), x, BOX), ball.project(v.clone(), x, BOX)
    assert (ball.norm(p - x) <= eps + 1e-9).all()
    assert p.min() >= 0
    assert p.max() <= 1
    torch.testing.assert_close(ball.project(p, x, BOX), p, rtol=0, atol=1e-9)
    assert ((p - q).norm(dim=1) <= (u - v).norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("seed", range(4))
def test_l1_projection_is_the_nearest_point(seed):
    x, u, _ = points(seed, d=5)
    mine = L1(0.7).project(u, x, BOX)
    for i in range(4):
        a, b = x[i].numpy(), u[i].numpy()
        # delta = p - m with p, m >= 0 makes the constraint smooth
        best = minimize(
            lambda s, a=a, b=b: ((a + s[:5] - s[5:] - b) ** 2).sum(),
            np.zeros(10),
            bounds=[(0, hi) for hi in (*(1 - a), *a)],
            constraints={"type": "ineq", "fun": lambda s: 0.7 - s.sum()},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(mine[i], a + best.x[:5] - best.x[5:], atol=1e-5)


@pytest.mark.parametrize("cls", BALLS)
def test_draws_are_uniform_in_the_ball(cls):
    ball, x = cls(2.0), torch.zeros(4000, 3)
    radius = ball.norm(ball.draw(x, Draws(0, "draw", torch.arange(4000)))) / 2.0
    assert radius.max() <= 1 + 1e-6
    # The norm of a uniform point in d dimensions to the power d is uniform.
    ranks = (radius**3).sort().values
    assert (ranks - torch.linspace(0, 1, 4000)).abs().max() < 1.95 / 4000**0.5


@pytest.mark.parametrize("cls", BALLS)
def test_direction_has_norm_one_and_survives_tiny_gradients(cls):
    grad = torch.randn(6, 20, generator=torch_rng(0, "g"))
    z = torch.full_like(grad, 0.5)
    for scale in (1.0, 1e-30):
        step = cls(1.0).ascent(grad * scale, z, BOX)
        torch.testing.assert_close(cls(1.0).norm(step), torch.ones(6))
    assert cls(1.0).ascent(torch.zeros_like(grad), z, BOX).abs().max() == 0


def test_l1_direction_is_sparse_and_leaves_blocked_coordinates():
    grad, z = torch.arange(1.0, 21.0)[None], torch.full((1, 20), 0.5)
    z[0, -1] = 1.0
    step = L1(1.0, density=0.1).ascent(grad, z, BOX)
    assert step[0].nonzero()[:, 0].tolist() == [17, 18]


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf"), "0.1"])
def test_bad_eps(eps):
    with pytest.raises(InputError, match="eps"):
        Linf(eps)
    with pytest.raises(InputError, match="density"):
        L1(1.0, density=0.0)
