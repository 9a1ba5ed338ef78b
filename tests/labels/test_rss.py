"""Robust self-supervised training: the closed form against its definition, limits, networks, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.labels import (
    RobustSelfSupervised,
    SelfTraining,
    generalization_bound,
    robust_margin_loss,
    robust_surrogate,
)
from assay.runtime.errors import InputError
from assay.science import linear_accuracy, shifted_gmm


@given(st.floats(-5, 5), st.floats(0.05, 20))
def test_closed_form_is_the_supremum(margin: float, gamma: float) -> None:
    """Moving by t against theta costs gamma t and flips the decision at t = margin: no other move can pay."""
    stay, flip = float(margin <= 0), 1 - gamma * max(margin, 0.0)
    found = float(robust_margin_loss(torch.tensor([margin], dtype=torch.float64), gamma))
    assert found == pytest.approx(max(stay, flip, 0.0), abs=1e-12)


@given(st.integers(0, 10_000), st.floats(0.05, 50))
def test_closed_form_is_the_supremum_over_a_grid_of_moves(seed: int, gamma: float) -> None:
    """The definition itself: sup over Z along theta of the zero-one loss of Z less gamma times its distance."""
    theta, x = np.random.default_rng(seed).normal(size=(2, 4))
    theta /= np.linalg.norm(theta)
    moves = np.append(np.linspace(-5, 5, 2001), -theta @ x)  # the last brings x onto the boundary
    z = x + moves[:, None] * theta
    found = robust_margin_loss(torch.tensor([theta @ x]), gamma).item()
    assert found == pytest.approx(((z @ theta <= 1e-12) - gamma * np.abs(moves)).max(), abs=1e-6)


def test_a_large_gamma_counts_the_points_next_to_the_boundary() -> None:
    scores = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    for gamma in (10.0, 50.0):
        inside = scores.abs() < 1 / gamma
        term = robust_margin_loss(scores.abs(), gamma)
        assert torch.equal(term > 0, inside)
        assert term.sum().item() == pytest.approx(float(inside.sum()) / 2, rel=0.05)


def test_the_bayes_rule_of_the_simulation() -> None:
    mixture = shifted_gmm(4, 0, 20, test=20_000, seed=0)
    assert linear_accuracy(mixture.mean, mixture.mean) == pytest.approx(0.8413, abs=1e-4)
    measured = (np.sign(mixture.x_test @ mixture.mean) == mixture.y_test).mean()
    assert measured == pytest.approx(0.8413, abs=0.01)


def test_an_infinite_gamma_is_the_zero_one_loss_without_slope() -> None:
    margin = torch.tensor([-1.0, 0.0, 0.3], requires_grad=True)
    loss = robust_margin_loss(margin, math.inf)
    assert loss.tolist() == [1.0, 1.0, 0.0]
    loss.sum().backward()
    assert margin.grad is not None
    assert not margin.grad.any()


def test_without_a_pool_it_is_empirical_risk_minimisation() -> None:
    data = shifted_gmm(10, 0, 30, test=10, seed=0)
    mean = (data.y[:, None] * data.x).mean(0)
    plain = RobustSelfSupervised(lam=0.0, steps=20).fit(data.x, data.y)
    assert np.allclose(plain.coef_, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.array_equal(RobustSelfSupervised(lam=0.0, steps=20).fit(data.x, data.y, data.pool).coef_, plain.coef_)
    graph = torch.from_numpy(data.x).requires_grad_()
    assert np.array_equal(RobustSelfSupervised(lam=0.0, steps=20).fit(graph, data.y).coef_, plain.coef_)
    robust = RobustSelfSupervised(lam=0.0, gamma=1.0, steps=100).fit(data.x, data.y)
    margins = [torch.from_numpy(data.y * (data.x @ fit.coef_)) for fit in (plain, robust)]
    before, after = (float(robust_margin_loss(m, 1.0).mean()) for m in margins)
    assert after < before


def test_the_pool_helps_and_labels_of_any_two_values_work() -> None:
    data = shifted_gmm(10, 2000, 60, test=10, seed=1)
    names = np.where(data.y == 1, "pos", "neg")
    rule = RobustSelfSupervised(steps=150, batch_size=500)
    fitted, again = (rule.fit(data.x, names, data.pool, seed=3) for _ in range(2))
    erm = RobustSelfSupervised(lam=0.0).fit(data.x, names)
    assert linear_accuracy(fitted.coef_, data.mean) > linear_accuracy(erm.coef_, data.mean) + 0.05
    assert np.array_equal(fitted.coef_, again.coef_)
    assert set(fitted.predict(data.x)) <= {"pos", "neg"}
    assert fitted.score(data.x_test, np.where(data.y_test == 1, "pos", "neg")) >= 0.5


def test_self_training_keeps_the_decisions_of_its_start() -> None:
    data = shifted_gmm(10, 300, 40, test=10, seed=2)
    start = (data.y[:, None] * data.x).mean(0)
    far = SelfTraining(lam=1e3, steps=300).fit(data.x, data.y, data.pool)
    guesses = np.where(data.pool @ start > 0, 1, -1)
    assert np.mean(far.predict(data.pool) == guesses) > 0.95


def test_balance_moves_the_shares_of_an_uneven_pool() -> None:
    data = shifted_gmm(20, 400, 10, test=10, seed=4)
    pool = data.pool[(np.arange(400) % 2 == 0) | (np.arange(400) < 80)]
    shares = [
        abs(RobustSelfSupervised(steps=100, balance=b).fit(data.x, data.y, pool).predict(pool).mean()) for b in (0, 1e3)
    ]
    assert shares[1] < shares[0]


def test_a_linear_surrogate_has_its_known_maximum() -> None:
    """For logits (0, <w, z>) the concave problem is solved along w: z - x = -s sigma(<w, z>) w / (2 gamma), s = +-1."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False).double()
    with torch.no_grad():
        model.weight[0] = 0
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1] * 3)
    loss, z = robust_surrogate(model, x, y, 2.0, steps=400, step_size=0.1)
    w, sign = model.weight[1].detach(), 1 - 2 * y.double()
    slope = sign * torch.sigmoid(sign * (z @ w))
    assert torch.allclose(z - x, slope[:, None] * w / 4, atol=1e-10)
    plain = F.cross_entropy(model(x), y, reduction="none")
    assert (loss >= plain).all()
    unmoved, same = robust_surrogate(model, x, y, math.inf)
    assert torch.equal(unmoved, plain)
    assert torch.equal(same, x)


def test_a_network_of_three_classes() -> None:
    g = torch.Generator().manual_seed(0)
    centres = 3 * torch.eye(3, 6)
    y = torch.arange(90) % 3
    x = centres[y] + torch.randn(90, 6, generator=g)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    kept = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    rule = RobustSelfSupervised(base=net, gamma=2.0, gamma_u=1.0, lam=1.0, steps=60, lr=0.01, inner_steps=3)
    fitted = rule.fit(x[:12], y[:12], x[12:])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    assert fitted.score(x, y) > 0.8
    assert fitted.decision_function(x).shape == (90, 3)
    with pytest.raises(InputError, match="linear"):
        _ = fitted.coef_


def test_bounds_move_as_the_theorems_say() -> None:
    for kind in ("robust", "non-robust"):
        at = lambda **more: generalization_bound(kind, **({"d": 200, "m": 40, "n": 1000, "alpha": 0.1} | more))  # noqa: B023, E731
        assert at(n=10**6) < at() < at(alpha=0.5)
        assert at(m=400) < at()
        assert at(constant=3.0) == pytest.approx(3 * at())
    assert generalization_bound("robust", 200, 40, 10**12, 0.0) == pytest.approx(
        math.sqrt(2 * math.log(20) / 40), rel=0.05
    )
    assert generalization_bound("erm", 200, 40, 0, 0.0) == pytest.approx(math.sqrt(5))
    d, m, n, a, log = 50, 20, 300, 0.2, 2 * math.log(20)
    shift = a * 2 + math.sqrt(2 * d / (2 * n + m)) + math.sqrt(log / (2 * n + m))
    expected = 1.5 * math.sqrt(2 * d / m * shift) + math.sqrt(log / m)
    assert generalization_bound("robust", d, m, n, a, gamma=1.5) == pytest.approx(expected)


def test_bad_input() -> None:
    data = shifted_gmm(10, 20, 5, test=10, seed=0)
    rule = RobustSelfSupervised(steps=2)
    for x, y, pool in (
        (data.x[:0], data.y[:0], data.pool),
        (data.x, np.ones(10), data.pool),
        (data.x, np.arange(10) % 3, data.pool),
        (data.x, data.y[:5], data.pool),
        (data.x, data.y, None),
        (data.x, data.y, data.pool[:0]),
        (data.x, data.y, data.pool[:, :3]),
        (np.where(data.x > 1, np.nan, data.x), data.y, data.pool),
    ):
        with pytest.raises(InputError, match="expected"):
            rule.fit(x, y, pool)
    with pytest.raises(InputError, match="as fitted"):
        rule.fit(data.x, data.y, data.pool).predict(data.x[:, :3])
    steps: tuple[dict, ...] = ({"inner_steps": 0}, {"step_size": math.nan})
    for more in ({"gamma": 0.0}, {"gamma_u": -1.0}, {"lam": -1.0}, {"base": "tree"}, *steps):
        with pytest.raises(InputError, match="expected"):
            RobustSelfSupervised(**more)
    for numbers in (("robust", 0, 1, 1, 0.0), ("other", 1, 1, 1, 0.0), ("robust", 1, 1, 1, -1.0)):
        with pytest.raises(InputError, match="expected"):
            generalization_bound(*numbers)
    with pytest.raises(InputError, match="expected"):
        robust_surrogate(nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 0.0)
