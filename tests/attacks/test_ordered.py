"""Ordered top-k attacks: the projection against independent solvers, the losses against their formulas, the loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, nnls
from torch import nn

from assay.attacks import (
    AdversarialDistillation,
    CWTopK,
    Ordered,
    OrderedQP,
    QuadAttack,
    Targeted,
    Untargeted,
    ordered_constraints,
    project_ordered,
    sample_targets,
)
from assay.attacks.linear_head import linear_head
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


def problem(seed, n=20, d=16, c=10, k=4):
    g = torch_rng(seed, "problem")
    weight, bias = torch.randn(c, d, generator=g, dtype=torch.float64), torch.randn(c, generator=g, dtype=torch.float64)
    z = 2 * torch.randn(n, d, generator=g, dtype=torch.float64)
    y = (z @ weight.T + bias).argmax(1)
    return z, weight, bias, sample_targets(y, c, k, seed=seed)


def by_nnls(z, rows, bound):
    """Least-distance programming (Lawson and Hanson, 1974, chapter 23): min ||u|| with rows u >= bound, u = z* - z."""
    system = np.vstack((rows.T, bound[None]))
    aim = np.zeros(len(system))
    aim[-1] = 1
    residual = system @ nnls(system, aim, maxiter=10_000)[0] - aim
    return z - residual[:-1] / residual[-1]


@pytest.mark.parametrize("k", range(1, 10))
def test_projection_is_that_of_nnls(k):
    z, weight, bias, targets = problem(k, k=k)
    point = project_ordered(z, weight, bias, targets, 0.2)
    rows = ordered_constraints(targets, 10)
    for i in range(len(z)):
        table, bound = (rows[i] @ weight).numpy(), (0.2 - rows[i] @ (weight @ z[i] + bias)).numpy()
        assert np.abs(by_nnls(z[i].numpy(), table, bound) - point[i].numpy()).max() < 1e-6


@pytest.mark.parametrize("k", [1, 5, 9])
def test_projection_is_that_of_slsqp(k):
    z, weight, bias, targets = (t[:5] if t.shape[0] == 20 else t for t in problem(100 + k, k=k))
    point = project_ordered(z, weight, bias, targets, 0.2)
    rows = ordered_constraints(targets, 10)
    for i in range(len(z)):
        table, bound = (rows[i] @ weight).numpy(), (0.2 - rows[i] @ bias).numpy()
        found = minimize(
            lambda u, i=i: ((u - z[i].numpy()) ** 2).sum(),
            z[i].numpy(),
            jac=lambda u, i=i: 2 * (u - z[i].numpy()),
            constraints={"type": "ineq", "fun": lambda u, t=table, b=bound: t @ u - b, "jac": lambda _, t=table: t},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert np.abs(found.x - point[i].numpy()).max() < 1e-6


@pytest.mark.parametrize("shape", [(30, 64, 40, 12), (4, 130, 100, 20)])
def test_optimality_conditions_and_the_order(shape):
    n, d, c, k = shape
    z, weight, bias, targets = problem(3, n, d, c, k)
    margin = torch.linspace(0.1, 0.5, n, dtype=torch.float64)
    qp = OrderedQP(weight, bias, targets, margin)
    point, push = qp.project(z), qp.multipliers(z)
    rows = ordered_constraints(targets, c)
    gaps = torch.einsum("nmc,nc->nm", rows, point @ weight.T + bias) - margin[:, None]
    assert gaps.min() > -1e-6
    assert push.min() >= 0
    assert (push * gaps).abs().max() < 1e-6
    torch.testing.assert_close(point - z, torch.einsum("nm,nmc->nc", push, rows) @ weight, rtol=0, atol=1e-9)
    assert Ordered(targets).met(point @ weight.T + bias).all()
    torch.testing.assert_close(qp.project(point), point, rtol=0, atol=1e-6)
    cold = OrderedQP(weight, bias, targets, margin).project(z + 0.1)
    torch.testing.assert_close(qp.project(z + 0.1), cold, rtol=0, atol=1e-9)  # a warm start changes nothing


def test_point_with_the_order_is_fixed():
    z, weight, bias, targets = problem(5)
    inside = project_ordered(z, weight, bias, targets, 0.3)
    assert project_ordered(inside, weight, bias, targets, 0.2).equal(inside)


def test_fewer_features_than_classes():
    line = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    flat, start = torch.zeros(3, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert project_ordered(start, line, flat, torch.tensor([[2, 1]]), 0.2).item() == pytest.approx(0.2, abs=1e-8)
    for order in ([1], [2, 0]):  # the middle of a line is never its end
        with pytest.raises(InputError, match="no features have the order of 1 of 1"):
            project_ordered(start, line, flat, torch.tensor([order]), 0.2)


def test_gradient_with_a_held_projection():
    z, weight, bias, targets = problem(7, n=6)
    step = 1e-5 * torch.randn(6, 16, generator=torch_rng(1, "step"), dtype=torch.float64)
    qp = OrderedQP(weight, bias, targets, 0.2)

    def loss(u):
        return (u - qp.project(u)).square().sum(1)

    slope = (2 * (z - qp.project(z)) * step).sum(1)
    torch.testing.assert_close((loss(z + step) - loss(z - step)) / 2, slope, rtol=1e-4, atol=1e-12)


def test_targets_are_distinct_and_not_the_label():
    y = torch.arange(200) % 7
    targets = sample_targets(y, 7, 6, seed=0)
    assert (torch.cat((targets, y[:, None]), 1).sort(1).values == torch.arange(7)).all()
    assert sample_targets(y[5:9], 7, 6, seed=0, index=torch.arange(5, 9)).equal(targets[5:9])
    assert targets[:, 0].bincount().min() > 10
    for k in (0, 7):
        with pytest.raises(InputError, match="k is"):
            sample_targets(y, 7, k, seed=0)


def test_cw_loss_is_its_formula():
    logits = torch.randn(9, 8, generator=torch_rng(0, "logits"))
    targets = sample_targets(logits.argmax(1), 8, 4, seed=0)
    got = CWTopK(confidence=0.1).penalty(logits, targets)
    for i in range(9):
        terms = []
        for k in range(1, 5):
            first = targets[i, :k].tolist()
            most = max(float(logits[i, j]) for j in range(8) if j not in first)
            terms.append(max(most - min(float(logits[i, j]) for j in first) + 0.1, 0))
        assert float(got[i]) == pytest.approx(sum(terms) / 4, abs=1e-6)
    one = CWTopK().penalty(logits, targets[:, :1])
    torch.testing.assert_close(one, (-Targeted(targets[:, 0]).margin(logits)).clamp_min(0))


def test_distillation_is_zero_at_its_own_distribution():
    targets = torch.tensor([[2, 0, 4], [1, 3, 2]])
    names = torch.linspace(-0.4, 0.8, 25).reshape(5, 5)
    for attack in (AdversarialDistillation(), AdversarialDistillation(similarity=names)):
        aim = attack.distribution(targets, 5)
        assert aim.argsort(1, descending=True)[:, :3].equal(targets)
        assert aim.gather(1, targets).log().diff(dim=1).sub(-0.3).abs().max() < 1e-9
        torch.testing.assert_close(attack.penalty(aim.log(), targets), torch.zeros(2, dtype=aim.dtype))
        other = torch.randn(2, 5, generator=torch_rng(0, "o"), dtype=aim.dtype)
        expected = F.cross_entropy(other, aim, reduction="none") + (aim * aim.log()).sum(1)
        torch.testing.assert_close(attack.penalty(other, targets), expected)
    mean = (names[2, 1] + names[0, 1] + names[4, 1]) / 3
    assert float((aim[0, 1] / aim[0, 2]).log()) == pytest.approx(float(mean) - 10, abs=1e-5)
    with pytest.raises(InputError, match="similarity has shape"):
        AdversarialDistillation(similarity=names).distribution(targets, 6)


class Identity(nn.Module):
    """Features are the inputs, so the nearest input with an order is known in closed form."""

    def __init__(self, weight):
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize(("cls", "factor"), [(QuadAttack, 1.5), (CWTopK, 1.5), (AdversarialDistillation, 2.0)])
def test_finds_the_order_near_the_least_distance(cls, factor):
    weight = torch.linalg.qr(torch.randn(12, 12, generator=torch_rng(0, "w"), dtype=torch.float64)).Q
    x = torch.rand(6, 12, generator=torch_rng(0, "x"), dtype=torch.float64) * 2 - 1
    targets = sample_targets((x @ weight.T).argmax(1), 12, 3, seed=0)
    goal = Ordered(targets)
    attack = cls(bounds=(-3.0, 3.0), steps=200, lr=0.02, coef_upper=100.0, binary_search_steps=3)
    result = attack.run(Identity(weight), x, goal, seed=0)
    least = (project_ordered(x, weight, torch.zeros(12), targets, 1e-9) - x).norm(dim=1)
    assert result.success.all()
    assert goal.met(result.x_adv @ weight.T).all()
    assert (result.distance >= least - 1e-9).all()
    assert (result.distance <= factor * least).all()
    assert (result.gradients == 600).all()


def test_a_failure_gives_the_input_back():
    with seeded(0, "init"):
        model = MLP((1, 4, 4), 10, (12,))
    x = torch.rand(4, 1, 4, 4, generator=torch_rng(0, "x"))
    goal = Ordered(sample_targets(torch.zeros(4, dtype=torch.int64), 10, 9, seed=0))
    result = QuadAttack(steps=2, lr=1e-5).run(model, x, goal, seed=0)
    assert not result.success.any()
    assert result.x_adv.equal(x)
    assert (result.distance == math.inf).all()


def test_every_pass_is_counted():
    passes = []
    with seeded(0, "init"):
        model = MLP((1, 4, 4), 10, (12,))
    model.register_forward_hook(lambda *_: passes.append(1))
    x = torch.rand(2, 1, 4, 4, generator=torch_rng(0, "x"))
    for attack in (QuadAttack(steps=3), CWTopK(steps=3, binary_search_steps=2)):
        passes.clear()
        result = attack.run(model, x, Untargeted(torch.zeros(2, dtype=torch.int64)), seed=0)
        assert result.queries.tolist() == [len(passes)] * 2


def test_relative_margin_does_not_depend_on_the_scale_of_logits():
    with seeded(0, "init"):
        model = MLP((1, 4, 4), 6, (12,)).double()
    x = torch.rand(4, 1, 4, 4, generator=torch_rng(0, "x"), dtype=torch.float64)
    goal = Ordered(sample_targets(model(x).argmax(1), 6, 2, seed=0))
    attack = QuadAttack(margin=0.5, relative=True, lr=0.02)
    first = attack.run(model, x, goal, seed=0)
    with torch.no_grad():
        model.head.weight.mul_(7)
        model.head.bias.mul_(7)
    second = attack.run(model, x, goal, seed=0)
    torch.testing.assert_close(first.x_adv, second.x_adv, rtol=0, atol=1e-8)


def test_the_head_is_found_and_verified():
    with seeded(0, "init"):
        model = MLP((1, 4, 4), 6, (12,))
    x = torch.rand(2, 1, 4, 4, generator=torch_rng(0, "x"))
    assert linear_head(model, x) is model.head
    assert linear_head(model, x, "head") is model.head
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for broken, name, message in (
        (nn.Sequential(model, nn.Softmax(1)), None, "not that of its last"),
        (model, "body.1", "not that of its last"),
        (model, "heads", "did you mean 'head'"),
        (nn.Flatten(), None, "calls no nn.Linear"),
    ):
        with pytest.raises(InputError, match=message):
            linear_head(broken, x, name)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"lr": 0.0}, {"coef_upper": math.inf}, {"margin": 0.0}, {"binary_search_steps": 0}]
)
def test_bad_options(options):
    with pytest.raises(InputError, match="QuadAttack"):
        QuadAttack(**options)
