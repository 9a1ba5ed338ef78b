"""The contract of learners, over every exported one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.decide import BanditHistory, ClassificationBandit, Learner, run_bandit
from assay.methods import exported
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

# Small networks and rates at which they learn the toy in the rounds that the suite has.
OPTIONS = {"width": 16, "copies": 3, "lr": 0.5}
METHODS = list(exported("learner").values())
learners = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def make(cls: type[Learner]) -> Learner:
    learner = cls()
    return replace(learner, **{k: v for k, v in OPTIONS.items() if hasattr(learner, k)})


def toy(seeds: tuple[int, ...], n: int = 300) -> ClassificationBandit:
    """Three classes, each around its own axis."""
    g = torch_rng(0, "toy")
    y = torch.arange(n) % 3
    x = torch.nn.functional.one_hot(y, 4) + 0.2 * torch.randn(n, 4, generator=g)
    return ClassificationBandit(x / x.norm(dim=1, keepdim=True), y, seeds=seeds)


def played(cls: type[Learner], seeds: tuple[int, ...] = (1,), rounds: int = 40) -> BanditHistory:
    return run_bandit(make(cls), toy(seeds), rounds)


def test_the_suite_sees_methods() -> None:
    names = {c.__name__ for c in METHODS}
    assert {"NeuSquareCB", "NeuFastCB", "NeuralUCB", "NeuralTS", "NeuralEpsGreedy", "UniformArms"} <= names
    assert all(issubclass(c, Learner) for c in METHODS)


@learners
def test_same_seed_same_run_and_another_seed_another(cls: type[Learner]) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = played(cls)
    assert torch.equal(torch.get_rng_state(), state)
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002
    torch.rand(3)
    again, other = played(cls), run_bandit(make(cls), toy((1,)), 40, seeds=(5,))
    assert torch.equal(first.arm, again.arm)
    assert torch.equal(first.probs, again.probs)
    assert not torch.equal(first.arm, other.arm)


@learners
def test_lanes_do_not_touch_each_other(cls: type[Learner]) -> None:
    together = played(cls, (1, 2, 3))
    for lane, seed in enumerate((1, 2, 3)):
        alone = played(cls, (seed,))
        assert torch.equal(together.arm[lane], alone.arm[0])
        torch.testing.assert_close(together.probs[lane], alone.probs[0], rtol=1e-3, atol=1e-5)


@learners
def test_probabilities_are_a_distribution_and_rule_the_arms(cls: type[Learner]) -> None:
    run = played(cls, (1, 2))
    assert run.probs.dtype == torch.float64
    assert run.probs.min() >= 0
    torch.testing.assert_close(run.probs.sum(2), torch.ones(2, 40, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (run.probs.gather(2, run.arm[..., None]) > 0).all()


@learners
def test_environment_and_learner_stay_as_they_are(cls: type[Learner]) -> None:
    env, learner = toy((1,)), make(cls)
    x, y, before = env.x.clone(), env.y.clone(), repr(learner)
    run_bandit(learner, env, 20)
    assert torch.equal(env.x, x)
    assert torch.equal(env.y, y)
    assert repr(learner) == before


@learners
def test_only_the_cost_of_the_arm_played_is_learned(cls: type[Learner]) -> None:
    """Costs of other arms may be anything: the run is the same."""

    class Hidden(ClassificationBandit):
        shown: torch.Tensor | None = None

        def costs(self, t: int) -> torch.Tensor:
            every = super().costs(t)
            if self.shown is None:
                return every
            own = torch.nn.functional.one_hot(self.shown[:, t], self.arms).bool()
            return torch.where(own, every, 1 - every)

    plain = toy((1,), 60)
    env = Hidden(plain.x, plain.y, seeds=(1,))
    first = run_bandit(make(cls), env)
    env.shown = first.arm
    assert torch.equal(run_bandit(make(cls), env).arm, first.arm)


@learners
def test_learns_a_toy(cls: type[Learner]) -> None:
    run = played(cls, (1, 2, 3, 4), 300)
    chance = 2 / 3 * 300
    if cls.__name__ == "UniformArms":
        assert abs(float(run.total.mean()) - chance) < 20
    else:
        assert float(run.total.mean()) < 0.7 * chance
        assert float(run.cost[:, 200:].mean()) < 0.4


@learners
def test_dense_features_serve_as_well(cls: type[Learner]) -> None:
    policy = make(cls).start(3, 5, seeds=(1, 2))
    context = torch.randn(2, 3, 5, generator=torch_rng(0, "dense"))
    for _ in range(3):
        arm, probs = policy.act(context)
        assert arm.shape == (2,)
        assert probs.shape == (2, 3)
        policy.update(context, arm, torch.tensor([0.0, 1.0]))


@learners
def test_bad_input(cls: type[Learner]) -> None:
    learner = make(cls)
    for arms, features, seeds in ((1, 4, (1,)), (3, -1, (1,)), (3, 6, ())):
        with pytest.raises(InputError, match="expected"):
            learner.start(arms, features, seeds=seeds)
    policy = learner.start(3, 6, seeds=(1, 2))
    good, arm, cost = torch.ones(2, 3, 6), torch.tensor([0, 2]), torch.tensor([0.0, 1.0])
    for bad, words in ((good[:, :2], "shape"), (good[:1], "shape"), (good * torch.nan, "NaN")):
        with pytest.raises(InputError, match=words):
            policy.act(bad)
    policy.act(good)
    for wrong_arm, wrong_cost, words in (
        (arm + 1, cost, "below 3"),
        (arm[:1], cost, "int64"),
        (arm.float(), cost, "int64"),
        (arm, cost + 1, r"\[0, 1\]"),
        (arm, cost * torch.nan, r"\[0, 1\]"),
        (arm, cost[:1], "expected"),
    ):
        with pytest.raises(InputError, match=words):
            policy.update(good, wrong_arm, wrong_cost)
    for rounds in (0, 301):
        with pytest.raises(InputError, match="rounds"):
            run_bandit(learner, toy((1,)), rounds)
    with pytest.raises(InputError, match="one a lane"):
        run_bandit(learner, toy((1,)), 5, seeds=(1, 2))
