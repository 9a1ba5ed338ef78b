"""The gradient engine against closed forms, and its economy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.attacks import FGSM, L1, L2, PGD, Linf, Ordered, RandomNoise, Targeted, Untargeted
from assay.attacks.base import OBJECTIVES
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


class Linear(nn.Module):
    """Two classes, the second's logit w x + b; counts the samples that it sees."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w, self.seen = nn.Parameter(w), 0

    def forward(self, x):
        self.seen += len(x)
        return torch.stack((x @ self.w, torch.zeros(len(x))), 1)


@pytest.fixture
def linear():
    return Linear(torch.randn(30, generator=torch_rng(0, "w")))


X, Y = torch.full((5, 30), 0.5), torch.zeros(5, dtype=torch.int64)


def drop(model, attack):
    x_adv = attack(model, X, Y, seed=0)
    with torch.no_grad():
        return (X - x_adv) @ model.w


@pytest.mark.parametrize("attack", [FGSM(early_stop=False, ball=Linf(0.1)), PGD(early_stop=False, ball=Linf(0.1))])
def test_linf_takes_the_dual_norm_off_a_linear_margin(linear, attack):
    torch.testing.assert_close(drop(linear, attack), (0.1 * linear.w.abs().sum()).expand(5).detach())


@pytest.mark.parametrize(
    "attack", [FGSM(early_stop=False, ball=L2(0.4)), PGD(early_stop=False, step_size=1.0, ball=L2(0.4))]
)
def test_l2_takes_the_dual_norm_off_a_linear_margin(linear, attack):
    torch.testing.assert_close(drop(linear, attack), (0.4 * linear.w.norm()).expand(5).detach(), rtol=1e-4, atol=0)


def test_l1_takes_the_dual_norm_off_a_linear_margin(linear):
    attack = FGSM(early_stop=False, ball=L1(0.3, density=1 / 30))
    torch.testing.assert_close(drop(linear, attack), (0.3 * linear.w.abs().max()).expand(5).detach())


def test_one_forward_pass_a_step_and_none_wasted(linear):
    PGD(steps=7, early_stop=False, ball=Linf(0.01))(linear, X, Y, seed=0)
    assert linear.seen == 7 * 5
    linear.seen = 0
    result = PGD(steps=7, ball=Linf(1e-6)).run(linear, X, Untargeted((X @ linear.w < 0).long()), seed=0)
    assert linear.seen == 8 * 5 == int(result.queries.sum())
    assert result.gradients.tolist() == [7] * 5


@pytest.mark.parametrize("attack", [PGD(steps=2, early_stop=False), FGSM(early_stop=False)])
def test_many_samples_are_attacked_in_batches(attack):
    x, y, sizes = torch.rand(600, 30, generator=torch_rng(0, "x")), torch.zeros(600, dtype=torch.int64), []
    model = nn.Linear(30, 2)
    model.register_forward_hook(lambda _m, given, _o: sizes.append(len(given[0])))
    x_adv = attack(model, x, y, seed=0)
    assert max(sizes) == 256
    torch.testing.assert_close(x_adv, attack.run(model, x, Untargeted(y), seed=0).x_adv)


def test_weights_made_in_inference_mode_are_named():
    with torch.inference_mode():
        model = nn.Linear(30, 2)
    with pytest.raises(InputError, match=r"made in torch.inference_mode .*; expected one that was made outside"):
        PGD()(model, X, Y, seed=0)


def test_fooled_samples_leave_and_restarts_take_only_survivors(linear):
    predicted = (X @ linear.w < 0).long()
    y = predicted.clone()
    y[:2] = 1 - y[:2]  # already wrong: fooled by the first point
    result = PGD(steps=4, restarts=3, ball=Linf(1e-6)).run(linear, X, Untargeted(y), seed=0)
    assert result.success.tolist() == [True, True, False, False, False]
    assert result.queries.tolist() == [1, 1, 15, 15, 15]
    assert linear.seen == int(result.queries.sum())


def test_objectives_grow_with_the_goal_and_agree_with_cross_entropy():
    logits = torch.randn(6, 5, generator=torch_rng(1, "l"), dtype=torch.float64).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    (mine,) = torch.autograd.grad(OBJECTIVES["ce"](logits, Untargeted(y)).sum(), logits)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    torch.testing.assert_close(F.normalize(mine), F.normalize(theirs))
    (mine,) = torch.autograd.grad(OBJECTIVES["ce"](logits, Targeted(y)).sum(), logits)
    torch.testing.assert_close(F.normalize(mine), -F.normalize(theirs))
    with torch.no_grad():
        for goal in (Untargeted(y), Targeted(y), Ordered(torch.stack((y, (y + 1) % 5), 1))):
            assert ((goal.margin(logits) > 0) == goal.met(logits)).all()
            assert ((OBJECTIVES["dlr"](logits, goal) > 0) == goal.met(logits)).all()
        first = Ordered(y[:, None])
        torch.testing.assert_close(first.margin(logits), Targeted(y).margin(logits))
        torch.testing.assert_close(first.likelihood(logits), -F.cross_entropy(logits, y, reduction="none"))


def test_a_saturated_model_still_gives_a_gradient(linear):
    # Cross-entropy's own gradient is exactly zero here: p rounds to 1.
    model = Linear(linear.w.detach() * 1e4)
    y = (X @ model.w < 0).long()
    assert PGD(ball=Linf(0.5)).run(model, X, Untargeted(y), seed=0).success.all()


def test_ordered_goal_is_reached():
    with seeded(0, "net"):
        model = nn.Linear(30, 6)
    goal = Ordered(torch.tensor([[4, 1], [0, 5], [2, 3]]))
    result = PGD(ball=L2(6.0), steps=60).run(model, X[:3], goal, seed=0)
    assert result.success.all()
    with torch.no_grad():
        assert model(result.x_adv).topk(2).indices.equal(goal.targets)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(steps=-1),
        lambda: PGD(restarts=0),
        lambda: PGD(step_size=0.0),
        lambda: PGD(loss="hinge"),
        lambda: PGD(ball=0.1),
        lambda: RandomNoise(steps=3),
        lambda: PGD(loss="dlr")(Linear(torch.ones(30)), X, Y, seed=0),
        lambda: PGD().run(Linear(torch.ones(30)), X, Ordered(torch.zeros(5, 2, dtype=torch.int64)), seed=0),
        lambda: PGD().run(Linear(torch.ones(30)), X, Y, seed=0),
    ],
)
def test_bad_options(make):
    with pytest.raises(InputError):
        make()
