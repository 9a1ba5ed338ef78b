"""Directional attacks: their closed form on linear maps, first-order ascent, and what they leave alone."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.attacks import AttackOperator, Direction
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

Kind = Literal["fgsm", "pgd"]


def linear(seed: int, d: int = 7, m: int = 3) -> tuple[nn.Linear, Tensor, Tensor]:
    with seeded(seed, "linear"):
        phi = nn.Linear(d, m, dtype=torch.float64)
    g = torch_rng(seed, "points")
    return phi, torch.randn(d, generator=g, dtype=torch.float64), torch.randn(m, generator=g, dtype=torch.float64)


def smooth(seed: int = 0) -> nn.Module:
    with seeded(seed, "smooth"):
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["fgsm", "pgd"]),
    radius=st.floats(1e-4, 10),
    steps=st.integers(1, 12),
)
@settings(max_examples=30)
def test_linear_maps_have_a_closed_form(seed: int, kind: Kind, radius: float, steps: int) -> None:
    phi, x, u = linear(seed)
    g = phi.weight.detach().T @ u
    two = AttackOperator(attack=kind, norm=2, steps=steps)(phi, x, u, radius)
    inf = AttackOperator(attack=kind, norm=math.inf, steps=steps)(phi, x, u, radius)
    torch.testing.assert_close(two, x + radius * g / g.norm(), rtol=0, atol=1e-12 * max(1, radius))
    torch.testing.assert_close(inf, x + radius * g.sign(), rtol=0, atol=1e-12 * max(1, radius))


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
@pytest.mark.parametrize(("norm", "dual"), [(2, 2), (math.inf, 1)])
def test_the_gain_is_the_radius_times_the_dual_norm_up_to_second_order(kind: Kind, norm: float, dual: float) -> None:
    phi, x = smooth(), torch.linspace(-1, 1, 5, dtype=torch.float64)
    u = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda v: phi(v[None])[0] @ u, x).norm(p=dual)
    errors = []
    for radius in (1e-2, 1e-3, 1e-4):
        moved = AttackOperator(attack=kind, norm=norm)(phi, x, u, radius)
        gain = ((phi(moved[None]) - phi(x[None])) @ u).item()
        errors.append(abs(gain - radius * slope.item()) / radius**2)
    assert max(errors) < 50
    assert max(errors) < 3 * min(errors) + 1e-3  # a second-order term: its ratio to radius^2 settles


def test_pgd_never_falls_below_its_start_and_stays_in_the_ball_and_the_bounds() -> None:
    with seeded(1, "net"):
        phi = MLP((6,), 3, (16,)).double()
    g = torch_rng(1, "points")
    for _ in range(20):
        x, u = torch.rand(6, generator=g, dtype=torch.float64), torch.randn(3, generator=g, dtype=torch.float64)
        moved = AttackOperator(attack="pgd", bounds=(0.0, 1.0))(phi, x, u, 3.0)
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert (phi(moved[None]) @ u).item() >= (phi(x[None]) @ u).item()
        near = AttackOperator(attack="pgd")(phi, x, u, 0.3)
        assert (near - x).norm() <= 0.3 + 1e-12


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_dead_units_give_the_point_back(kind: Kind) -> None:
    first = nn.Linear(4, 4, dtype=torch.float64)
    nn.init.constant_(first.bias, -100.0)
    phi = nn.Sequential(first, nn.ReLU())
    x = torch.ones(4, dtype=torch.float64)
    assert torch.equal(AttackOperator(attack=kind)(phi, x, torch.ones(4, dtype=torch.float64), 0.5), x)


def test_nothing_is_modified() -> None:
    phi, x, u = linear(3)
    phi.train()
    before, weights = (x.clone(), u.clone()), phi.weight.detach().clone()
    state = torch.get_rng_state()
    first = AttackOperator()(phi, x, u, 0.1)
    torch.rand(3)
    again = AttackOperator()(phi, x, u, 0.1)
    assert torch.equal(first, again)
    torch.set_rng_state(state)
    AttackOperator()(phi, x, u, 0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before[0])
    assert torch.equal(u, before[1])
    assert torch.equal(phi.weight, weights)
    assert phi.training
    assert phi.weight.requires_grad
    assert not first.requires_grad


def test_a_callable_serves_models_without_gradients() -> None:
    phi, x, u = linear(4)
    operator = AttackOperator(attack=lambda _phi, at, _u, radius: at + radius)
    assert operator.gradients == 0
    assert torch.equal(operator(phi, x, u, 0.5), x + 0.5)
    assert AttackOperator(attack="fgsm").gradients == 1
    assert AttackOperator(steps=7).gradients == 7


def test_a_direction_is_climbed_by_rows_and_refused_where_it_does_not_fit() -> None:
    phi, x, u = linear(5)
    goal = Direction(torch.stack((u, -u)))
    y = phi(torch.stack((x, x)))
    assert torch.allclose(goal.likelihood(y), torch.stack((y[0] @ u, -(y[1] @ u))))
    assert not goal.met(y).any()
    for bad in (u, goal.u.long(), goal.u * math.nan):
        with pytest.raises(InputError):
            Direction(bad).check("here", 2)
    with pytest.raises(InputError, match="labels go up to"):
        AttackOperator()(phi, x, torch.ones(9, dtype=torch.float64), 0.1)


@pytest.mark.parametrize("options", [{"attack": "best"}, {"norm": 1}, {"steps": 0}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(InputError):
        AttackOperator(**options)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_bad_radii_and_points(radius: float) -> None:
    phi, x, u = linear(6)
    with pytest.raises(InputError):
        AttackOperator()(phi, x, u, radius)
    with pytest.raises(InputError):
        AttackOperator()(phi, x[None], u, 0.1)
    with pytest.raises(InputError):
        AttackOperator()(phi, x * math.nan, u, 0.1)
    with pytest.raises(InputError):
        AttackOperator()(phi, x, u * math.nan, 0.1)
