"""Attributions: closed forms, completeness, and the deletion and insertion games."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.data import load_data
from assay.explain import Gradient, GradientInput, IntegratedGradients, RandomAttribution, SmoothGrad
from assay.explain.integrated_gradients import RULES
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded


def linear(seed: int = 0) -> nn.Module:
    with seeded(seed, "linear"):
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()


def inputs(n: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = Draws(seed, "x", torch.arange(n))
    return draws.normal(3, 2, 2).double(), draws.integers(4)


class Square(nn.Module):
    """f_k(x) = (k + 1) * sum of squares: the integral of its gradient is a polynomial."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).square().sum(1, keepdim=True) * torch.arange(1, 5).to(x)


def test_gradient_of_a_linear_net_is_its_weight() -> None:
    model, (x, y) = linear(), inputs()
    weight = model[1].weight[y].reshape(x.shape)
    assert torch.allclose(Gradient().attribute(model, x, y, seed=0), weight)
    assert torch.allclose(Gradient(absolute=True).attribute(model, x, y, seed=0), weight.abs())
    assert torch.allclose(GradientInput().attribute(model, x, y, seed=0), weight * x)
    assert torch.allclose(SmoothGrad(samples=3).attribute(model, x, y, seed=0), weight)


@pytest.mark.parametrize("rule", RULES)
@given(steps=st.integers(2, 40), baseline=st.floats(-2, 2), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_integrated_gradients_are_exact_on_linear_nets(rule: str, steps: int, baseline: float, seed: int) -> None:
    model, (x, y) = linear(seed), inputs(seed=seed)
    method = IntegratedGradients(steps=steps, rule=rule, baseline=baseline)  # type: ignore[arg-type]
    a = method.attribute(model, x, y, seed=0)
    assert torch.allclose(a, (x - baseline) * model[1].weight[y].reshape(x.shape), atol=1e-10)
    rise = (model(x) - model(torch.full_like(x, baseline))).gather(1, y[:, None])[:, 0]
    assert torch.allclose(a.flatten(1).sum(1), rise, atol=1e-10)


def test_rules_resolve_what_their_order_promises() -> None:
    """f = k |x|^2 from 0: the gradient is linear on the line. Midpoint, trapezoid and Gauss are exact, the ends are
    off by 1 / steps either way."""
    x, y = inputs()
    exact = x.square() * (y + 1).reshape(-1, 1, 1, 1)
    for rule, factor in {
        "gauss-legendre": 1.0,
        "riemann-middle": 1.0,
        "trapezoid": 1.0,
        "riemann-left": 1 - 1 / 10,
        "riemann-right": 1 + 1 / 10,
    }.items():
        a = IntegratedGradients(steps=10, rule=rule).attribute(Square(), x, y, seed=0)  # type: ignore[arg-type]
        assert torch.allclose(a, factor * exact, atol=1e-10), rule


def test_completeness_on_a_relu_net_improves_with_steps() -> None:
    with seeded(1, "init"):
        model = MLP(hidden=(48, 48))
    data = load_data("digits:test")[:40]
    target = model(data.x).argmax(1)
    rise = (model(data.x) - model(torch.zeros_like(data.x))).detach().gather(1, target[:, None])[:, 0]
    gaps = []
    for steps in (4, 32, 256):
        a = IntegratedGradients(steps=steps).attribute(model, data.x, target, seed=0)
        gaps.append(float((a.flatten(1).sum(1) - rise).abs().mean() / rise.abs().mean()))
    assert gaps[0] > 4 * gaps[2]
    assert gaps[2] < 5e-3


def test_gradient_input_is_complete_without_biases() -> None:
    with seeded(2, "init"):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 4, bias=False)
        ).double()
    x, y = inputs()
    a = GradientInput().attribute(model, x, y, seed=0)
    assert torch.allclose(a.flatten(1).sum(1), model(x).gather(1, y[:, None])[:, 0], atol=1e-10)


def test_smooth_grad_is_the_mean_over_its_own_noise() -> None:
    """The square's gradient at x + s e is 2 k (x + s e): the mean of the noise is all that is added."""
    x, y = inputs()
    scale = 2 * (y + 1).reshape(-1, 1, 1, 1)
    e = Draws(7, "explain.SmoothGrad", torch.arange(5)).normal(25, 3, 2, 2).double()
    spread = 0.2 * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).reshape(-1, 1, 1, 1)
    a = SmoothGrad(samples=25, noise=0.2).attribute(Square(), x, y, seed=7)
    assert torch.allclose(a, scale * (x + spread * e.mean(1)), atol=1e-10)
    still = SmoothGrad(noise=0.0).attribute(Square(), x, y, seed=7)
    assert torch.allclose(still, Gradient().attribute(Square(), x, y, seed=7), atol=1e-10)


def test_random_attributions_are_uniform_and_differ_between_samples_and_seeds() -> None:
    x = torch.zeros(200, 3, 5, 5)
    y = torch.zeros(200, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 4))
    a = RandomAttribution().attribute(model, x, y, seed=0)
    assert float(a.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(a.var()) == pytest.approx(1 / 12, abs=0.003)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, RandomAttribution().attribute(model, x, y, seed=1))


def test_bad_options() -> None:
    for make in (
        lambda: IntegratedGradients(steps=0),
        lambda: IntegratedGradients(steps=1, rule="trapezoid"),
        lambda: IntegratedGradients(rule="simpson"),  # type: ignore[arg-type]
        lambda: IntegratedGradients(baseline=float("nan")),
        lambda: SmoothGrad(samples=0),
        lambda: SmoothGrad(noise=-1.0),
    ):
        with pytest.raises(InputError):
            make()


def test_a_model_that_gives_no_tensor_is_named() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(InputError, match="output is tuple"):
        Gradient().attribute(Pair(), torch.rand(2, 4), torch.zeros(2, dtype=torch.int64), seed=0)


def test_a_model_without_gradients_is_named() -> None:
    class Hard(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 3)

    with pytest.raises(InputError, match="differentiably"):
        Gradient().attribute(Hard(), torch.rand(2, 4), torch.zeros(2, dtype=torch.int64), seed=0)
