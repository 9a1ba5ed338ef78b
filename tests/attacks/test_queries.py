"""The query engine: bisection, the distance of HopSkipJump, the ball of Square, starting points."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.attacks import BoundaryAttack, HopSkipJump, Linf, Square, Untargeted
from assay.runtime.errors import BudgetError, InputError
from assay.runtime.random import torch_rng
from assay.subject import Access, Oracle


class HalfSpace(nn.Module):
    """Class 1 where w x > t: the distance to the boundary is known."""

    def __init__(self, w: torch.Tensor, t: float) -> None:
        super().__init__()
        self.w, self.t = nn.Parameter(w), t

    def forward(self, x):
        z = x.flatten(1) @ self.w - self.t
        return torch.stack((-z, z), 1)


W = torch.randn(16, generator=torch_rng(0, "w")).abs()
X = torch.full((4, 1, 4, 4), 0.4) + 0.05 * torch.rand(4, 1, 4, 4, generator=torch_rng(0, "x"))
Y = torch.zeros(4, dtype=torch.int64)
T = float((X.flatten(1) @ W).max()) + 0.6


@pytest.mark.parametrize(("norm", "dual", "slack"), [("l2", 2, 1.05), ("linf", 1, 1.25)])
def test_hopskipjump_comes_near_the_true_distance(norm, dual, slack):
    true = (T - X.flatten(1) @ W) / W.norm(dual)
    result = HopSkipJump(norm=norm, budget=4000).run(HalfSpace(W, T), X, Untargeted(Y), seed=0)
    assert result.success.all()
    assert (result.distance >= true - 1e-5).all()
    assert (result.distance <= slack * true).all()


def test_a_given_start_is_used_and_a_useless_one_replaced():
    start = torch.ones_like(X)
    start[1] = X[1]  # does not meet the goal
    result = HopSkipJump(budget=100).run(HalfSpace(W, T), X, Untargeted(Y), seed=0, start=start)
    assert result.success.all()
    assert result.trace[0][0].tolist() == pytest.approx([2, float((1 - X[0]).norm())])
    with pytest.raises(InputError, match="start"):
        HopSkipJump().run(HalfSpace(W, T), X, Untargeted(Y), seed=0, start=start[:2])


def test_nothing_found_gives_the_input_back_at_infinity():
    result = HopSkipJump(budget=200).run(HalfSpace(W, 1e6), X, Untargeted(Y), seed=0)
    assert not result.success.any()
    assert result.x_adv.equal(X)
    assert (result.distance == torch.inf).all()


def test_an_already_met_goal_costs_one_query():
    for attack in (HopSkipJump(), Square()):
        result = attack.run(HalfSpace(W, T), X, Untargeted(1 - Y), seed=0)
        assert result.queries.tolist() == [1] * 4
        assert result.x_adv.equal(X)
        assert (result.distance == 0).all()


def test_square_reaches_the_corner_that_a_linear_model_needs():
    gap = T - X.flatten(1) @ W
    enough = float((gap / W.sum()).max()) * 1.05
    result = Square(ball=Linf(enough), budget=3000).run(HalfSpace(W, T), X, Untargeted(Y), seed=0)
    assert result.success.all()
    short = float((gap / W.sum()).min()) * 0.95
    result = Square(ball=Linf(short), budget=300).run(HalfSpace(W, T), X, Untargeted(Y), seed=0)
    assert not result.success.any()
    assert (result.distance <= short + 1e-6).all()
    # What it ends on is far better than where a random corner leaves it.
    assert ((result.x_adv - X).flatten(1) @ W > 0.8 * short * W.sum()).all()


def test_a_shared_oracle_budget_is_enforced_and_images_are_needed():
    with pytest.raises(BudgetError):
        HopSkipJump().run(Oracle(HalfSpace(W, T), access=Access.DECISION, budget=50), X, Untargeted(Y), seed=0)
    with pytest.raises(InputError, match="image"):
        Square().run(HalfSpace(W, T), X.flatten(1), Untargeted(Y), seed=0)


def test_the_boundary_attack_does_not_depend_on_the_layout_in_memory() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval(), torch.rand(2, 3, 4, 4)
    y, attack = model(x).argmax(1), BoundaryAttack(budget=150)
    plain, last = (
        attack.run(model, t, Untargeted(y), seed=0).x_adv for t in (x, x.to(memory_format=torch.channels_last))
    )
    assert torch.equal(plain, last)
