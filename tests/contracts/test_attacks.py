"""What every exported attack promises; a new attack joins by being exported."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import assay.attacks as room
from assay import load_data
from assay.attacks import Ball, Linf, RandomNoise, Targeted, Untargeted
from assay.attacks.base import Attack
from assay.attacks.penalty import PenaltyAttack
from assay.attacks.queries import QueryAttack
from assay.nets import SmallCNN
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import seeded
from assay.subject import Access, Oracle
from assay.training import Supervised

EPS = 0.15


def exported() -> list[type[Attack]]:
    found = [getattr(room, name) for name in room.__all__]
    attacks = [c for c in found if isinstance(c, type) and issubclass(c, Attack)]
    return [c for c in attacks if not c.__dict__.get("contract", False)]


SHORT: dict[str, dict] = {
    "AutoAttack": {"steps": 10, "budget": 60},
    "CarliniWagner": {"steps": 150, "searches": 2, "initial": 1.0, "learning_rate": 0.1},
    "DDN": {"steps": 40},
    "FAB": {"steps": 20},
    "FMN": {"steps": 60},
    "QuScore": {"mutation": 0.05},  # without surrogates: all that it finds is found by mutation
}


COLOR = {"YChannelAttack"}  # attacks that take color images only


def within(attack: Attack, ball: Ball) -> Attack:
    """The attack in another ball, or what it is built on in another ball."""
    base = getattr(attack, "base", None)
    if isinstance(base, Attack):
        return replace(attack, base=replace(base, ball=ball))
    return replace(attack, ball=ball)


def small(cls: type[Attack]) -> Attack:
    """The attack at a size that suits a test."""
    options: dict = {}
    if issubclass(cls, QueryAttack):
        options["budget"] = 300
    if issubclass(cls, PenaltyAttack):
        options["lr"] = 0.02
    attack = cls(**options, **SHORT.get(cls.__name__, {}))
    return within(attack, Linf(EPS)) if cls.guarantee == "ball" else attack


ATTACKS = [pytest.param(small(cls), id=cls.__name__) for cls in exported()]


def trained(channels: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and digits that it classifies correctly, with ``channels`` equal channels."""
    train, test = (d.with_x(d.x.expand(-1, channels, -1, -1)) for d in map(load_data, ("digits:train", "digits:test")))
    with seeded(0, "init"):
        model = SmallCNN(train.shape, 10, widths=(8, 16), hidden=32)
    model = Supervised(epochs=6).fit(model, train, seed=0)
    right = model(test.x).argmax(1) == test.y
    return model, test.x[right][:48], test.y[right][:48]


@pytest.fixture(scope="module")
def settings():
    return cache(trained)


@pytest.fixture
def setting(attack, settings):
    return settings(3 if type(attack).__name__ in COLOR else 1)


def test_the_room_exports_its_attacks():
    assert {"FGSM", "PGD", "RandomNoise", "HopSkipJump", "Square", "QuadAttack", "CWTopK"} <= {
        c.__name__ for c in exported()
    }


@pytest.mark.parametrize("attack", ATTACKS)
def test_result_is_true(attack, setting):
    model, x, y = setting
    result = attack.run(model, x, Untargeted(y), seed=1)
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == x.dtype
    assert result.x_adv.min() >= attack.bounds[0]
    assert result.x_adv.max() <= attack.bounds[1]
    with torch.no_grad():
        fooled = model(result.x_adv).argmax(1) != y
    assert (fooled == result.success).float().mean() >= 0.97
    true = attack.measure(result.x_adv - x)
    if attack.guarantee == "ball":
        assert (true <= EPS + 1e-6).all()
        torch.testing.assert_close(result.distance, true)
    else:
        torch.testing.assert_close(result.distance[result.success], true[result.success])
        assert (result.distance[~result.success] == torch.inf).all()
    assert (result.queries >= 1).all()
    assert (result.gradients.sum() > 0) == (attack.access >= Access.GRADIENT)


@pytest.mark.parametrize("attack", ATTACKS)
def test_same_seed_same_result_and_nothing_is_touched(attack, setting):
    model, x, y = setting
    model = copy.deepcopy(model).train()
    next(model.parameters()).requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    kept, labels, random = x.clone(), y.clone(), torch.get_rng_state()
    first = attack(model, x[:12], y[:12], seed=3)
    with torch.no_grad():
        again = attack(model, x[:12], y[:12], seed=3)
    assert first.equal(again)
    assert torch.get_rng_state().equal(random)
    assert x.equal(kept)
    assert y.equal(labels)
    assert not x.requires_grad
    assert not first.requires_grad
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_sample_does_not_depend_on_its_batch(attack, setting):
    model, x, y = setting
    model, x = copy.deepcopy(model).double(), x.double()[:24]  # double: the question is randomness, not rounding
    goal, index = Untargeted(y[:24]), torch.arange(100, 124)
    whole = attack.run(model, x, goal, seed=5, index=index)
    parts = attack.run(model, x, goal, seed=5, index=index, batch_size=7)
    torch.testing.assert_close(parts.x_adv, whole.x_adv, rtol=0, atol=1e-5)
    assert parts.queries.equal(whole.queries)
    rows = torch.tensor([20, 3])
    some = attack.run(model, x[rows], goal.select(rows), seed=5, index=index[rows])
    torch.testing.assert_close(some.x_adv, whole.x_adv[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_input(attack, setting):
    model, x, y = setting
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    cases = [(broken, y), (x + 1, y), (x[:0], y[:0]), (x, y[:-1]), (x, y.float()), (x, y + 90), (x.long(), y)]
    for bad_x, bad_y in cases:
        with pytest.raises(InputError) as caught:
            attack(model, bad_x, bad_y, seed=0)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        replace(attack, bounds=(1.0, 0.0))

    class Blind(torch.nn.Module):
        def forward(self, z):
            return z.flatten(1)[:, :10] * torch.nan

    with pytest.raises(InputError, match="not finite"):
        attack(Blind(), x, y, seed=0)
    for size in (0, -1):
        with pytest.raises(InputError, match=f"batch_size is {size}; expected at least 1"):
            attack.run(model, x, Untargeted(y), seed=0, batch_size=size)


class Giving(nn.Module):
    """A model whose output is what ``form`` makes of logits."""

    def __init__(self, model: nn.Module, form) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, z: Tensor):
        return self.form(self.model(z))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda z: z[:, :1], "two classes or more"),
        (lambda z: (z, z), "the model gives tuple; expected a tensor"),
        (lambda z: z[:1], r"shape \(1,"),
    ],
    ids=["one-logit", "tuple", "one-row"],
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_model_that_gives_no_logits_is_refused(attack, form, message, setting):
    model, x, y = setting
    for net in (Giving(model, form), Oracle(Giving(model, form), access=attack.access)):
        if isinstance(net, nn.Module) or attack.access <= Access.SCORE:
            with pytest.raises(InputError, match=message):
                attack(net, x[:4], torch.zeros_like(y[:4]), seed=0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_model_of_another_floating_type_is_refused(attack, setting):
    model, x, y = setting
    with pytest.raises(InputError, match=r"model holds float64 and fails on inputs of float32 \(.*its own type"):
        attack(copy.deepcopy(model).double(), x[:4], y[:4], seed=0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_inference_mode_of_the_caller_changes_nothing(attack, setting):
    model, x, y = setting
    plain = attack(model, x[:4], y[:4], seed=0)
    with torch.inference_mode():
        inside = attack(model, x[:4].clone(), y[:4].clone(), seed=0)
        given = x[:4].clone()
    assert inside.equal(plain)
    assert attack(model, given, y[:4], seed=0).equal(plain)


@pytest.mark.parametrize("attack", ATTACKS)
def test_rounding_beyond_the_bounds_is_brought_onto_them(attack, setting):
    model, x, y = setting
    near = x[:4] * (1 + 1.8e-6) - 9e-7
    result = attack.run(model, near, Untargeted(y[:4]), seed=0, start=near.flip(0))
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    exact = attack.measure(result.x_adv - near.clamp(0, 1))
    torch.testing.assert_close(result.distance[result.success], exact[result.success])
    if attack.guarantee == "ball":
        assert (exact <= EPS * (1 + 1e-6)).all()


@pytest.mark.parametrize("attack", [p for p in ATTACKS if p.id != "RandomNoise"])
def test_beats_random_noise_of_the_same_size(attack, setting):
    model, x, y = setting
    if attack.guarantee == "ball":
        rate = attack.run(model, x, Untargeted(y), seed=0).success.float().mean()
        noise = RandomNoise(ball=Linf(EPS)).run(model, x, Untargeted(y), seed=0).success.float().mean()
        assert rate >= noise + 0.3
    else:
        result = attack.run(model, x, Untargeted(y), seed=0)
        assert result.success.all()
        ball = {"l2": room.L2, "linf": Linf}[attack.norm](float(result.distance.median()))
        noise = RandomNoise(ball=ball).run(model, x, Untargeted(y), seed=0).success.float().mean()
        assert noise < 0.2  # at this size the attack fools half of them


@pytest.mark.parametrize("attack", ATTACKS)
def test_targets(attack, setting):
    model, x, y = setting
    if attack.guarantee == "ball":
        attack = within(attack, Linf(0.5))
    t = (y[:16] + 1) % 10
    result = attack.run(model, x[:16], Targeted(t), seed=0)
    with torch.no_grad():
        hit = model(result.x_adv).argmax(1) == t
    assert (hit == result.success).float().mean() >= 0.93


@pytest.mark.parametrize("attack", [p for p in ATTACKS if isinstance(p.values[0], QueryAttack)])
def test_queries_are_counted_and_capped(attack, setting):
    model, x, y = setting
    oracle = Oracle(model, access=attack.access)
    result = attack.run(oracle, x[:8], Untargeted(y[:8]), seed=0)
    assert int(result.queries.sum()) == oracle.queries
    assert int(result.queries.max()) <= attack.budget
    assert len(result.trace) == 8
    for trace in result.trace:
        assert (trace[:, 0].diff() > 0).all()
        assert (trace[:, 1].diff() < 0).all()
    if attack.access > Access.DECISION:
        with pytest.raises(AccessError):
            attack.run(Oracle(model, access=Access.DECISION), x[:8], Untargeted(y[:8]), seed=0)
