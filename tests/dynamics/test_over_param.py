"""The theory's network against loops by hand, its linearisation, and the geometry of its data."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

from assay.dynamics import TwoLayerReLU, margin, separability, separable_sphere
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

X = separable_sphere(12, 5, 0.4, seed=0)


def moved(net: TwoLayerReLU, step: float, seed: int = 0) -> TwoLayerReLU:
    noise = torch.randn(net.u.shape, generator=torch_rng(seed, "move"), dtype=torch.float64)
    with torch.no_grad():
        net.u += step * noise
    return net


def test_outputs_and_linearisation_unit_by_unit() -> None:
    net = moved(TwoLayerReLU(5, 7, seed=1), 0.3)
    u, u0, a, b = net.u.detach(), net.start, net.a, net.b
    f, g, switched = [], [], []
    for x in X:
        units = range(7)
        f.append(sum(a[r] * max(float(u[r] @ x + b[r]), 0.0) for r in units))
        on = [float(u0[r] @ x + b[r]) >= 0 for r in units]
        g.append(sum(a[r] * ((u[r] - u0[r]) @ x) for r in units if on[r]))
        switched.append(sum(abs(a[r]) * x.norm() for r in units if (float(u[r] @ x + b[r]) >= 0) != on[r]))
    f, g = torch.tensor(f, dtype=torch.float64), torch.tensor(g, dtype=torch.float64)
    torch.testing.assert_close(net(X).detach(), f)
    torch.testing.assert_close(net.pseudo(X).detach(), g)
    assert net.coupling_gap(X) == pytest.approx(float((f - g).abs().max()))
    assert net.gradient_gap(X) == pytest.approx(float(max(switched)))
    assert net.displacement() == pytest.approx(float((u - u0).norm(dim=1).max()))


def test_the_linearisation_is_linear_and_has_the_gradient_of_the_start() -> None:
    one, two = (moved(TwoLayerReLU(5, 40, seed=1), 0.2, s) for s in (1, 2))
    both = TwoLayerReLU(5, 40, seed=1)
    with torch.no_grad():
        both.u.copy_(one.u + two.u - both.start)
    torch.testing.assert_close(both.pseudo(X), one.pseudo(X) + two.pseudo(X))
    start = TwoLayerReLU(5, 40, seed=1)
    grads = [torch.autograd.grad(out.sum(), start.u)[0] for out in (start(X), start.pseudo(X))]
    torch.testing.assert_close(*grads)
    assert start.gradient_gap(X) == start.displacement() == 0


def test_the_start_is_scaled_as_the_theory_says_and_follows_from_the_seed() -> None:
    m = 20_000
    net, again, other = (TwoLayerReLU(4, m, seed=s) for s in (3, 3, 4))
    assert net.a.abs().allclose(torch.tensor(m ** (-1 / 3), dtype=torch.float64))
    assert abs(float(net.a.sum())) * m ** (1 / 3) < 4 * m**0.5
    for t in (net.u.detach(), net.b):
        assert float(t.std()) == pytest.approx(m**-0.5, rel=0.03)
    assert net.u.equal(again.u)
    assert not net.u.equal(other.u)
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["u"]


def test_points_are_on_the_sphere_and_apart() -> None:
    assert X.norm(dim=1).allclose(torch.ones((), dtype=torch.float64))
    assert X[:, -1].eq(0.5).all()
    least = min(math.dist(p, q) for p, q in itertools.combinations(X.tolist(), 2))
    assert separability(X) == pytest.approx(least)
    assert least >= 0.4
    assert margin(X, 0.1) == pytest.approx(least * (least - 0.2))


def test_the_margin_is_the_gap_between_balls_along_the_line_of_two_points() -> None:
    """max of <z, p - q> over the ball of q against its min over the ball of p, for the nearest two."""
    pairs = itertools.combinations(range(len(X)), 2)
    i, j = min(pairs, key=lambda p: float((X[p[0]] - X[p[1]]).norm()))
    line = X[i] - X[j]
    reach = 0.15 * line / line.norm()
    assert margin(X, 0.15) == pytest.approx(float((X[i] - reach) @ line - (X[j] + reach) @ line))


def test_balls_that_meet_are_told() -> None:
    with pytest.warns(RuntimeWarning, match="meet"):
        assert margin(X, 0.5 * separability(X)) == pytest.approx(0, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        margin(X, 0.4 * separability(X))


def test_what_is_off_the_sphere_or_has_no_room_is_refused() -> None:
    with pytest.raises(InputError, match="unit sphere"):
        separability(2 * X)
    with pytest.raises(InputError, match="n >= 2"):
        separability(X[:1])
    with pytest.raises(InputError, match="room"):
        separable_sphere(50, 3, 1.0, seed=0)
    with pytest.raises(InputError, match="at least 1"):
        TwoLayerReLU(0, 4)
