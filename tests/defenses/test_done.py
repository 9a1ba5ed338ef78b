"""Weights against a numerical maximiser, hypergradients against closed forms and differences, DONE by its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data, load_data
from assay.defenses import DONE, PGDTraining, implicit_hypergradient, log_barrier_attack, tail_robust_accuracy
from assay.defenses.bilevel_at import box
from assay.losses import KLDROLoss, dro_weights
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import derive, seeded
from assay.training import State


def objective(w: np.ndarray, losses: np.ndarray, r: float) -> float:
    return float(w @ losses - r * (w * np.log(w * len(w))).sum())


@pytest.mark.parametrize("r", [0.1, 1.0, 10.0])
def test_weights_are_the_maximiser_and_its_value_the_log_mean(r: float) -> None:
    """Exponentiated gradient ascent from another point, which ends where the gradient is even."""
    losses = np.random.default_rng(0).gamma(2.0, size=9)
    w = np.random.default_rng(1).dirichlet(np.ones(9))
    for _ in range(400):
        w = w * np.exp(0.2 / r * (losses - r * np.log(w)))
        w /= w.sum()
    found = dro_weights(torch.from_numpy(losses), r).numpy()
    assert np.abs(found - w).max() < 1e-6
    assert objective(found, losses, r) == pytest.approx(r * math.log(np.mean(np.exp(losses / r))), abs=1e-10)
    assert float(KLDROLoss(r)(torch.from_numpy(losses))) == pytest.approx(objective(w, losses, r), abs=1e-6)


def test_extremes_of_r() -> None:
    losses = torch.tensor([0.0, 3.0, 1.0], dtype=torch.float64)
    assert torch.allclose(dro_weights(losses, 1e6), torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-5)
    assert float(KLDROLoss(1e-3)(losses)) == pytest.approx(3.0, abs=2e-3)
    assert torch.isfinite(KLDROLoss(1e-3, momentum=0.5)(1000 * losses))


def test_the_tracked_loss_moves_u_and_weighs_by_it() -> None:
    loss, r = KLDROLoss(0.7, momentum=0.75), 0.7
    first = torch.tensor([0.2, 1.0], dtype=torch.float64)
    second = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
    loss(first)
    value = loss(second)
    u = 0.75 * (first / r).exp().mean() + 0.25 * (second / r).exp().mean()
    assert float(value.detach()) == pytest.approx(r * math.log(float(u.detach())), abs=1e-6)
    (gradient,) = torch.autograd.grad(value, second)
    assert torch.allclose(gradient, ((second / r).exp() / u / 2).detach(), atol=1e-6)
    before = loss.log_u.clone()
    assert float(loss.eval()(first)) == pytest.approx(float(KLDROLoss(0.7)(first)))
    assert loss.log_u == before
    again = KLDROLoss(0.7, momentum=0.75)
    again.load_state_dict(loss.state_dict())
    assert float(again.log_u) == pytest.approx(float(loss.log_u))


def test_small_batches_need_the_tracked_u() -> None:
    """Of batches of four, softmax weights are nearly even; those by the running u are near the whole sample's."""
    losses = torch.from_numpy(np.random.default_rng(2).gamma(1.0, size=2000))
    whole = len(losses) * dro_weights(losses, 0.7)
    tracked, method = State(0, load_data("digits:train")[:4], 1), DONE(r=0.7, eta=0.05, warmup=0)
    errors = []
    for batch, right in zip(losses.view(-1, 4), whole.view(-1, 4), strict=True):
        ours = method.factors(batch, tracked)
        errors.append([(ours - right).abs().mean(), (4 * dro_weights(batch, 0.7) - right).abs().mean()])
    ours_error, softmax_error = np.array(errors)[50:].mean(0)
    assert ours_error < 0.7 * softmax_error


class Toy(nn.Module):
    """Outputs (z - theta, z) of inputs z (n, d)."""

    def __init__(self, theta: torch.Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.stack((z - self.theta, z), 1)


def test_the_whole_hessian_on_a_quadratic() -> None:
    """l' = |d - theta|^2 / 2 in a wide box, l = |d - t|^2 / 2: d* = theta but for the barrier, h = d* - t."""
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    model, t = Toy(theta), torch.tensor([1.0, 0.5, -0.4], dtype=torch.float64)
    x, y = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    _, surrogate = implicit_hypergradient(
        model, x, y, theta.detach()[None].clone(), 1e-9,
        lambda out, _: (out[:, 1] - t).square().sum(1) / 2, lambda out, _: out[:, 0].square().sum(1) / 2,
        eps=10.0, bounds=(-20, 20), hessian="cg",
    )  # fmt: skip
    (h,) = torch.autograd.grad(surrogate.sum(), model.theta)
    assert torch.allclose(h, theta - t, atol=1e-5)


def root(g: torch.Tensor, low: torch.Tensor, high: torch.Tensor, c: float) -> torch.Tensor:
    """The minimiser of -g d - c [ln(high - d) + ln(d - low)]: a root of a quadratic, by its middle and half width."""
    middle, half = (high + low) / 2, (high - low) / 2
    return middle + g * half**2 / (c + (c**2 + (g * half) ** 2).sqrt())


class Linear(nn.Module):
    """Outputs theta * z of inputs z (n, d): a linear attacker's loss, and a curved outer one."""

    def __init__(self, theta: torch.Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.theta * z


def test_the_diagonal_is_exact_for_a_linear_attacker() -> None:
    """Against differences of the outer loss at the closed minimiser of the inner problem."""
    theta, c = torch.tensor([0.8, -0.5, 0.3, 1.2], dtype=torch.float64), 0.02
    x, y = torch.tensor([[0.0, 0.5, 0.97, 0.2]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    low, high = box(x, 0.1, (0.0, 1.0))

    def inner(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return -out.sum(1)

    def outer(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (out.exp() + out.square()).sum(1)

    def whole(values: torch.Tensor) -> float:
        delta = root(values, low, high, c)
        return float(outer(values * (x + delta), y))

    model = Linear(theta.clone())
    delta = root(theta, low, high, c)
    _, surrogate = implicit_hypergradient(model, x, y, delta, c, outer, inner, eps=0.1)
    (h,) = torch.autograd.grad(surrogate.sum(), model.theta)
    step = 1e-6 * torch.eye(4, dtype=torch.float64)
    differences = [(whole(theta + s) - whole(theta - s)) / 2e-6 for s in step]
    assert torch.allclose(h, torch.tensor(differences, dtype=torch.float64), atol=1e-5)
    first_order = theta.clone().requires_grad_()
    (plain,) = torch.autograd.grad(outer(first_order * (x + delta), y).sum(), first_order)
    assert not torch.allclose(h, plain, atol=1e-3)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")[:64]


def net() -> nn.Module:
    with seeded(0, "test"):
        return SmallCNN(widths=(4, 8), hidden=16)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_the_attack_stays_strictly_inside_and_climbs(data: Data, steps: int) -> None:
    model = net().eval()
    delta = log_barrier_attack(model, data.x, data.y, 0.2, 1e-3, steps, 0.5, seed=0)
    low, high = box(data.x, 0.2, (0.0, 1.0))
    assert bool(((delta > low) & (delta < high)).all())
    start = log_barrier_attack(model, data.x, data.y, 0.2, 1e-3, 0, 0.5, seed=0)
    rise = F.cross_entropy(model(data.x + delta), data.y) - F.cross_entropy(model(data.x + start), data.y)
    assert steps == 0 or float(rise) > 0


def test_a_heavy_barrier_keeps_to_the_middle_of_the_box(data: Data) -> None:
    delta = log_barrier_attack(net().eval(), data.x, data.y, 0.2, 100.0, 40, 0.5, seed=0)
    low, high = box(data.x, 0.2, (0.0, 1.0))
    assert float((delta - (low + high) / 2).abs().max()) < 0.02


def test_without_robust_weights_the_gradient_is_that_of_the_mean(data: Data) -> None:
    model, batch = net().eval(), data.batch(torch.arange(32))
    method = DONE(r=1e6, implicit=False, attack_steps=2, eta=1.0)
    loss = method.objective(model, batch, State(0, data, 5))
    found = torch.autograd.grad(loss, list(model.parameters()))
    seed = derive(0, 0)
    delta = log_barrier_attack(model, batch.x, batch.y, 0.1, 5e-3, 2, 0.25, index=batch.index, seed=seed)
    expected = torch.autograd.grad(F.cross_entropy(model(batch.x + delta), batch.y), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_small_r_counts_the_worst_samples(data: Data) -> None:
    run = State(0, data, 5)
    factors = DONE(r=0.05).factors(torch.tensor([0.1, 2.0, 0.3, 0.2]), run)
    assert factors.argmax() == 1
    assert float(factors[1]) > 3.9
    assert run.log[-1]["largest"] == pytest.approx(float(factors.max()))


def test_done_is_robust_on_digits() -> None:
    train = load_data("digits:train")[:500]
    one = DONE(epochs=4, attack_steps=3, eps=0.05, r=2.0).fit(net(), train, seed=0)
    two = PGDTraining(epochs=4, attack_steps=3, eps=0.05).fit(net(), train, seed=0)
    rates = [float((m(train.x).argmax(1) == train.y).float().mean()) for m in (one, two)]
    assert rates[0] > rates[1] - 0.15


def test_tail_accuracy() -> None:
    y = torch.arange(40) % 4
    correct = (y >= 2) | (torch.arange(40) < 12)
    found = tail_robust_accuracy(correct, y, frac=0.5)
    assert found.accuracy == pytest.approx(0.3)
    assert set(found.classes) == {0, 1}
    assert tail_robust_accuracy(correct, y, frac=0.01).accuracy == pytest.approx(0.3)
    assert tail_robust_accuracy(correct, y, classes=(3,)).accuracy == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: DONE(r=0.0),
        lambda: DONE(eta=0.0),
        lambda: DONE(eta=1.5),
        lambda: DONE(c=0.0),
        lambda: DONE(norm="l2"),
        lambda: DONE(eps=0.0),
        lambda: KLDROLoss(-1.0),
        lambda: KLDROLoss(1.0, momentum=1.0),
        lambda: dro_weights(torch.tensor([1.0, math.nan]), 1.0),
        lambda: dro_weights(torch.tensor([]), 1.0),
        lambda: log_barrier_attack(net(), torch.zeros(1, 1, 8, 8), torch.zeros(1).long(), 0.1, 0.0, 1, 0.5, seed=0),
        lambda: tail_robust_accuracy(torch.ones(3) > 0, torch.tensor([0, 2, 2])),
        lambda: tail_robust_accuracy(torch.ones(2) > 0, torch.tensor([0, 1]), frac=0.0),
        lambda: implicit_hypergradient(
            net(), torch.zeros(1, 1, 8, 8), torch.zeros(1).long(), torch.zeros(1, 1, 8, 8), 0.1, eps=0.1
        ),
    ],
)
def test_bad_input(make: object) -> None:
    with pytest.raises(InputError, match="expected"):
        make()  # type: ignore[operator]
