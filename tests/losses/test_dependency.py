"""CPC and WPC: the bound, the penalty in closed form and by WGAN-GP's formula, its derivative, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.losses import CPCLoss, WPCLoss, gradient_penalty
from assay.losses.dependency import critic_gradients
from assay.papers.wasserstein_dependency import bound_gaps, derivative_gap, penalty_gap
from assay.represent import info_nce
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


def linear(x: Tensor, y: Tensor) -> Tensor:
    return 3 * x.sum(1) - 4 * y[:, 0]


X, Y, Z = draw("x", 8, 1), draw("y", 8, 3), draw("z", 8, 3)


def test_the_information_is_at_most_log_n() -> None:
    gaps = bound_gaps(0)
    assert gaps["excess"] <= 1e-12
    assert gaps["attained"] < 1e-9
    f, g = draw("f", 9, 4), draw("g", 9, 4)
    near = nn.functional.normalize(f, dim=1) @ nn.functional.normalize(g, dim=1).T / 0.2
    assert float(CPCLoss()(near)) == pytest.approx(float(info_nce(f, g)) - math.log(9))


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_the_penalty_of_a_linear_critic(a: float, b: float) -> None:
    found = gradient_penalty(lambda x, y: a * x[:, 0] + b * y[:, 1], X, Y, Z)
    assert float(found) == pytest.approx((math.hypot(a, b) - 1) ** 2, abs=1e-9)


def test_each_sham_breaks_the_closed_form() -> None:
    assert penalty_gap(0) < 1e-9
    assert penalty_gap(0, "parameter-penalty") > 0.01
    assert penalty_gap(0, "one-sided-input") > 0.01


def test_one_side_and_both_mixtures() -> None:
    assert float(gradient_penalty(linear, X, Y, Z)) == pytest.approx(16.0)
    flat = gradient_penalty(lambda x, y: 0.5 * x[:, 0] + 0 * y.sum(1), X, Y, Z, two_sided=False)
    assert float(flat) == 0.0
    quadratic = lambda x, y: (x.square().sum(1) + y.square().sum(1)) / 2  # noqa: E731
    eps = torch.linspace(0, 1, 8, dtype=torch.float64)
    other = draw("other", 8, 1)
    mixed = eps[:, None] * Y + (1 - eps[:, None]) * Z
    expected = (torch.cat((X, mixed), 1).norm(dim=1) - 1).square()
    assert torch.allclose(gradient_penalty(quadratic, X, Y, Z, eps=eps), expected.mean())
    second = (torch.cat((eps[:, None] * X + (1 - eps[:, None]) * other, Y), 1).norm(dim=1) - 1).square()
    both = gradient_penalty(quadratic, X, Y, Z, x_neg=other, eps=eps)
    assert torch.allclose(both, torch.cat((expected, second)).mean())


def test_it_is_differentiable_even_for_a_constant_critic() -> None:
    assert derivative_gap(0) < 1e-6
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda x, y: y @ w + 0 * x[:, 0], X, Y, Z)
    (gradient,) = torch.autograd.grad(penalty, w)
    assert torch.equal(gradient, torch.zeros(3, dtype=torch.float64))
    assert (critic_gradients(linear, X, Y) == 5).all()


def test_an_input_that_the_critic_does_not_use_has_no_slope() -> None:
    a = draw("a", 3)
    for critic in (lambda x, y: x @ a, lambda x, y: y @ a):
        assert gradient_penalty(critic, Y, Z, Y.roll(1, 0)).item() == pytest.approx((a.norm().item() - 1) ** 2)


def test_the_penalty_may_be_differentiated_twice() -> None:
    weight, eps = draw("w", 4, 6).requires_grad_(), torch.linspace(0, 1, len(Y), dtype=torch.float64)

    def penalty(w: torch.Tensor) -> torch.Tensor:
        critic = lambda x, y: torch.tanh(torch.cat((x, y), 1) @ w.T).sum(1)  # noqa: E731
        return gradient_penalty(critic, Y, Z, Y.roll(1, 0), eps=eps)

    assert torch.autograd.gradcheck(penalty, (weight,))
    assert torch.autograd.gradgradcheck(penalty, (weight,))


def test_the_loss_is_the_sum_of_its_parts_and_without_weight_that_of_cpc() -> None:
    with seeded(0, "nets"):
        phi, psi = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
    cpc = CPCLoss()(phi(Y) @ psi(Z).T)
    loss, logs = WPCLoss(0.0)(phi, psi, Y, Z)
    assert torch.equal(loss, cpc)
    assert logs == {"nce": -cpc.item(), "gp": 0.0}
    for symmetric in (False, True):
        with seeded(0, "eps"):
            loss, logs = WPCLoss(2.0, symmetric=symmetric)(phi, psi, Y, Z)
        assert float(loss) == pytest.approx(-logs["nce"] + 2 * logs["gp"])
        loss.backward()
        assert phi.weight.grad is not None


def test_the_penaltys_points_are_drawn_alike_for_every_device() -> None:
    critic = lambda x, y: x.sum(1) + y.sum(1)  # noqa: E731
    states = []
    for device in ("cpu", "meta"):
        with seeded(0, "eps"):
            gradient_penalty(critic, *(t.to(device) for t in (X, Y, Z)))
            states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


def test_bad_input() -> None:
    for call in (
        lambda: CPCLoss()(draw("s", 3, 4)),
        lambda: CPCLoss()(draw("s", 1, 1)),
        lambda: CPCLoss()(draw("s", 3, 3) * torch.nan),
        lambda: gradient_penalty(linear, X.long(), Y, Z),
        lambda: gradient_penalty(linear, X[:3], Y, Z),
        lambda: gradient_penalty(linear, X, Y, Z[:3]),
        lambda: gradient_penalty(linear, X, Y, Z, eps=torch.rand(3)),
        lambda: gradient_penalty(lambda x, y: x, X, Y, Z),
        lambda: gradient_penalty(lambda x, y: torch.zeros(len(x)), X, Y, Z),
        lambda: gradient_penalty(linear, X[:0], Y[:0], Z[:0]),
        lambda: WPCLoss()(nn.Linear(3, 2).double(), nn.Linear(3, 4).double(), Y, Z),
        lambda: WPCLoss(0.0)(nn.Identity(), nn.Identity(), Y[:, :, None], Z[:, :, None]),
        lambda: WPCLoss(-1.0),
        lambda: WPCLoss()(nn.Identity(), nn.Identity(), Y[:1], Z[:1]),
        lambda: WPCLoss()(nn.Identity(), nn.Identity(), Y[:2], Z),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
