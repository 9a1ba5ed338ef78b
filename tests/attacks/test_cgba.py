"""CGBA and CGBA-H against a sequential reading of the paper, the subspace against SciPy, and the boundary attack."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from torch import nn

from assay.attacks import CGBA, CGBAH, BoundaryAttack, Targeted, Untargeted
from assay.attacks.boundary import Length
from assay.attacks.subspace import LowFrequency, cosines
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, torch_rng
from assay.subject import Access, Oracle

D, WIDE = 12, (-9.0, 9.0)
CENTRE = 0.7 * torch.randn(D, generator=torch_rng(0, "centre"), dtype=torch.float64)


class Ellipsoid(nn.Module):
    """Class 0 inside an ellipsoid that holds the origin, class 1 outside: a curved boundary."""

    def forward(self, x):
        z = ((x - CENTRE) ** 2 * torch.linspace(0.3, 3, D, dtype=x.dtype)).sum(1) - 30
        return torch.stack((-z, z), 1)


class HalfSpace(nn.Module):
    """Class 1 where the mean pixel is above ``t``."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = t

    def forward(self, x):
        z = x.flatten(1).mean(1) - self.t
        return torch.stack((-z, z), 1)


def adversarial(p: np.ndarray) -> bool:
    return bool(((p - CENTRE.numpy()) ** 2 * np.linspace(0.3, 3, D)).sum() > 30)


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a)


def straight(x: np.ndarray, outside: np.ndarray, tol: float) -> np.ndarray:
    inside = x
    while np.linalg.norm(outside - inside) >= tol:
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if adversarial(middle) else (outside, middle)
    return outside


def reference(attack: CGBA, x: np.ndarray, start: np.ndarray, steps: int) -> list[float]:
    """One image, point by point: theta, m and zeta as printed, arcs bisected by sums of directions. No clipping."""
    draws = Draws(3, type(attack).__name__, torch.arange(1))
    z = straight(x, start, attack.tol)
    found = [float(np.linalg.norm(z - x))]
    for t in range(steps):
        noise = draws.normal(int(attack.initial * math.sqrt(t + 1)), D)[0].double().numpy()
        eta = unit(sum((1 if adversarial(z + attack.sigma * n) else -1) * n for n in noise))
        r, v = np.linalg.norm(z - x), unit(z - x)
        theta = math.acos(np.clip(eta @ v, -1, 1))
        for k in range(1, 41):
            beta = theta / 2**k if isinstance(attack, CGBAH) else math.pi / 2 * (1 - 2.0**-k)
            zeta = unit(eta + (math.sin(theta) / math.tan(beta) - math.cos(theta)) * v)
            p = x + zeta * r * (zeta @ v)
            if adversarial(p) == isinstance(attack, CGBAH):
                break
        if isinstance(attack, CGBAH):
            z = straight(x, p, attack.tol)
        else:
            clean, met, end = zeta, v, p
            while np.linalg.norm(z - end) >= attack.tol:
                middle = unit(clean + met)
                p = x + middle * r * (middle @ v)
                if adversarial(p):
                    met, z = middle, p
                else:
                    clean, end = middle, p
        found.append(float(np.linalg.norm(z - x)))
    return found


@pytest.mark.parametrize("cls", [CGBA, CGBAH])
def test_every_boundary_point_is_that_of_the_sequential_reading(cls):
    steps, x = 5, torch.zeros(1, D, dtype=torch.float64)
    start = 5 + torch.rand(1, D, generator=torch_rng(1, "start"), dtype=torch.float64)
    options = {"dim_reduction": 1, "sigma": 0.05, "tol": 1e-10, "bounds": WIDE}
    expected = reference(cls(**options), x[0].numpy(), start[0].numpy(), steps)
    goal = Untargeted(torch.zeros(1, dtype=torch.int64))
    found = [
        float(cls(**options, steps=k).run(Ellipsoid(), x, goal, seed=3, start=start).distance[0])
        for k in range(steps + 1)
    ]
    assert found == pytest.approx(expected, rel=1e-6)
    assert all(b < a for a, b in pairwise(found))


def test_low_frequencies_are_those_of_the_cosine_transform():
    space = LowFrequency((2, 8, 12), 4)
    assert space.coefficients == (2, 2, 3)
    assert space.dimension == 12
    like = torch.zeros(1, dtype=torch.float64)
    found = space.normal(Draws(0, "s", torch.arange(1)), 5, like)
    whole = np.zeros((5, 2, 8, 12))
    whole[:, :, :2, :3] = Draws(0, "s", torch.arange(1)).normal(5, 2, 2, 3)[0].numpy()
    np.testing.assert_allclose(found.numpy(), idctn(whole, axes=(2, 3), norm="ortho"), atol=1e-12)
    basis = cosines(9, 9)
    torch.testing.assert_close(basis.T @ basis, torch.eye(9, dtype=torch.float64))
    assert LowFrequency((7,), 1).normal(Draws(0, "s", torch.arange(1)), 3, like).shape == (3, 7)


@pytest.mark.parametrize("cls", [CGBA, CGBAH])
def test_boundary_is_found_where_the_bounds_clip(cls):
    """Black pixels next to grey ones: half of the noise points out of the bounds, and clipped arcs leave the plane."""
    x = torch.zeros(3, 1, 8, 8)
    x[:, :, 2:5, 2:5] = torch.rand(3, 1, 3, 3, generator=torch_rng(2, "x"))
    t = 0.3
    result = cls(dim_reduction=2, sigma=0.02, budget=2500).run(
        HalfSpace(t), x, Untargeted(torch.zeros(3, dtype=torch.int64)), seed=0
    )
    true = (t - x.flatten(1).mean(1)) * 8  # along the constant image, which no bound stops here
    assert (result.distance >= true - 1e-4).all()
    assert (result.distance <= 1.1 * true).all()
    assert float(result.x_adv.min()) >= 0
    assert float(result.x_adv.max()) <= 1


def test_best_of_starts_nearer_and_keeps_to_its_queries():
    x, y = torch.full((6, 1, 8, 8), 0.2), torch.zeros(6, dtype=torch.int64)
    start = (x + 0.8 * (torch.rand(6, 1, 8, 8, generator=torch_rng(0, "best")) > 0.3)).clamp(0, 1)
    options = {"dim_reduction": 2, "sigma": 0.02, "steps": 0}
    first = CGBAH(**options).run(HalfSpace(0.5), x, Untargeted(y), seed=0, start=start)
    best = CGBAH(**options, init="best_of", init_queries=60).run(HalfSpace(0.5), x, Untargeted(y), seed=0, start=start)
    assert (best.distance <= first.distance).all()
    assert float(best.distance.median()) < 0.97 * float(first.distance.median())
    assert (best.queries >= first.queries + 60).all()
    assert (best.queries <= first.queries + 60 + 20).all()  # the last bisection may end past them


def test_agreeing_answers_keep_the_boundary_point_and_warn():
    x, y = torch.full((1, 1, 8, 8), 0.2), torch.zeros(1, dtype=torch.int64)
    attack = CGBA(dim_reduction=4, sigma=1e-6, tol=0.2, steps=3)
    with pytest.warns(RuntimeWarning, match="agree"):
        result = attack.run(HalfSpace(0.5), x, Untargeted(y), seed=0)
    begun = CGBA(dim_reduction=4, sigma=1e-6, tol=0.2, steps=0).run(HalfSpace(0.5), x, Untargeted(y), seed=0)
    assert result.x_adv.equal(begun.x_adv)
    assert int(result.queries - begun.queries) == 30 + 42 + 51


def test_probes_beyond_the_bounds_are_never_returned():
    """All that meets the goal lies outside the bounds or at the start."""

    class Edge(nn.Module):
        def forward(self, x):
            out = ((x.flatten(1) < 0).any(1) | (x.flatten(1).mean(1) > 0.9)).to(x)
            return torch.stack((0.5 - out, out - 0.5), 1)

    x, y = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    start = torch.ones_like(x)
    result = CGBA(dim_reduction=1, sigma=0.05, steps=4).run(Edge(), x, Untargeted(y), seed=0, start=start)
    assert float(result.x_adv.min()) >= 0
    assert float(result.x_adv.mean()) > 0.9


def test_an_adversarial_input_costs_one_query_and_decisions_are_enough():
    x, y = torch.full((2, 1, 8, 8), 0.6), torch.zeros(2, dtype=torch.int64)
    oracle = Oracle(lambda z: (z.flatten(1).mean(1) > 0.5).long(), access=Access.DECISION)
    for attack in (CGBA(), CGBAH(), BoundaryAttack()):
        result = attack.run(oracle, x, Untargeted(y), seed=0)
        assert result.queries.tolist() == [1, 1]
        assert result.x_adv.equal(x)
    result = CGBA(dim_reduction=2, sigma=None, budget=600).run(oracle, x, Targeted(y), seed=0, start=x - 0.5)
    assert result.success.all()
    assert (result.distance < 0.85).all()  # 0.8 is the least


def test_nothing_found_gives_the_input_back_at_infinity():
    x, y = torch.full((1, 1, 8, 8), 0.2), torch.zeros(1, dtype=torch.int64)
    result = CGBA().run(HalfSpace(2.0), x, Untargeted(y), seed=0)
    assert result.x_adv.equal(x)
    assert result.distance.tolist() == [math.inf]
    assert result.queries.tolist() == [201]


@pytest.mark.parametrize(
    "options",
    [
        {"dim_reduction": 0.5}, {"sigma": 0.0}, {"tol": 0.0}, {"initial": 0}, {"steps": -1},
        {"init": "best"}, {"init_queries": -1}, {"budget": 0},
    ],
)  # fmt: skip
def test_options_out_of_range(options):
    for cls in (CGBA, CGBAH):
        with pytest.raises(InputError, match=cls.__name__):
            cls(**options)


def test_inputs_that_the_subspace_does_not_suit():
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match="image"):
        CGBA().run(HalfSpace(0.5), torch.zeros(1, 64), Untargeted(y), seed=0)
    with pytest.raises(InputError, match="pixels"):
        CGBA().run(HalfSpace(0.5), torch.zeros(1, 1, 8, 3), Untargeted(y), seed=0)


def test_boundary_attack_comes_near_a_half_space_and_adapts():
    x, y = torch.full((3, 1, 8, 8), 0.3), torch.zeros(3, dtype=torch.int64)
    result = BoundaryAttack(budget=2500, spherical=0.1, source=0.1).run(HalfSpace(0.5), x, Untargeted(y), seed=0)
    assert (result.distance >= 1.6 - 1e-4).all()
    assert (result.distance <= 1.1 * 1.6).all()
    attack = BoundaryAttack(window=4, adaptation=2.0)
    for met, expected in (((1, 1, 1, 0), 2.0), ((1, 0, 1, 0), 1.0), ((0, 0, 0, 0), 0.5)):
        length = Length(1.0, 0.2, 0.5, attack)
        for one in met:
            length.learn(bool(one))
        assert length.value == expected
    for options in ({"window": 0}, {"adaptation": 1.0}, {"source": 0.0}, {"steps": 0}):
        with pytest.raises(InputError, match="BoundaryAttack"):
            BoundaryAttack(**options)
