"""What every exported universal attack promises; a new one joins by being exported."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import assay.attacks as room
from assay import load_data
from assay.attacks import Perturbation, fooling_rate
from assay.attacks.universal import ActivationAttack
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised

EPS = 0.2


def exported() -> list[type]:
    found = [getattr(room, name) for name in room.__all__]
    return [c for c in found if getattr(c, "kind", None) == "universal" and c is not ActivationAttack]


def small(cls: type):
    """The attack at a size that suits a test."""
    return cls(eps=EPS, mean=(0.3,), lr=EPS / 10, max_iter=60, check_every=20, batch_size=8)


ATTACKS = [pytest.param(small(cls), id=cls.__name__) for cls in exported()]


@pytest.fixture(scope="module")
def setting():
    train, test = (load_data(f"digits:{part}") for part in ("train", "test"))
    train, test = (d.with_x(F.interpolate(d.x, scale_factor=3, mode="bilinear")) for d in (train, test))
    with seeded(0, "init"):
        model = SmallCNN(train.shape, 10, widths=(8, 16), hidden=32)
    return Supervised(epochs=4).fit(model, train, seed=0), train.x[:100], test.x[:300]


def test_the_room_exports_universal_attacks():
    assert {"GDUAP", "FastFeatureFool"} <= {c.__name__ for c in exported()}


@pytest.mark.parametrize("attack", ATTACKS)
def test_inference_mode_of_the_caller_changes_nothing(attack, setting):
    model, val, x = setting
    short = replace(attack, prior="data", max_iter=4, check_every=2)
    plain = short.fit(model, x.shape[1:], x[:8], seed=0, val=val[:8])
    with torch.inference_mode():
        given, seen = x[:8].clone(), val[:8].clone()
        inside = short.fit(model, x.shape[1:], given, seed=0, val=seen)
    assert inside.delta_.equal(plain.delta_)
    assert short.fit(model, x.shape[1:], given, seed=0, val=seen).delta_.equal(plain.delta_)


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_displacement_within_eps(attack, setting):
    model, val, x = setting
    found = attack.fit(model, x.shape[1:], seed=0, val=val)
    assert found.delta_.shape == (1, *x.shape[1:])
    assert found.delta_.abs().max() <= EPS
    assert not found.delta_.requires_grad
    moved = found(x)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert moved.equal((x + found.delta_).clamp(0, 1))
    scores = [p.score for p in found.history_]
    assert fooling_rate(model, val, found) == pytest.approx(max(scores))
    with pytest.raises(InputError, match="samples of shape"):
        found(x[:, :, 1:])


@pytest.mark.parametrize("prior", ["none", "range", "data"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_same_seed_same_result_and_nothing_is_touched(attack, prior, setting):
    model, data, _ = setting
    model = copy.deepcopy(model).train()
    next(model.parameters()).requires_grad_(False)
    attack = replace(attack, prior=prior, max_iter=10)
    given = data.clone() if prior == "data" else None
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags, modes = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    random, shape = torch.get_rng_state(), tuple(data.shape[1:])
    first = attack.fit(model, shape, given, seed=3)
    with torch.no_grad():
        again = attack.fit(model, shape, given, seed=3)
    assert first.delta_.equal(again.delta_)
    assert not first.delta_.equal(attack.fit(model, shape, given, seed=4).delta_)
    assert torch.get_rng_state().equal(random)
    assert given is None or given.equal(data)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("attack", ATTACKS)
def test_bad_input(attack, setting):
    model, data, _ = setting
    shape = tuple(data.shape[1:])
    broken = data.clone()
    broken[0, 0, 0, 0] = torch.nan
    by_data = replace(attack, prior="data")
    cases = [
        lambda: by_data.fit(model, shape, seed=0),
        lambda: attack.fit(model, shape, data, seed=0),
        lambda: by_data.fit(model, shape, broken, seed=0),
        lambda: by_data.fit(model, shape, data + 1, seed=0),
        lambda: by_data.fit(model, shape, data[:0], seed=0),
        lambda: by_data.fit(model, shape, data[:, :, 1:], seed=0),
        lambda: attack.fit(model, shape, seed=0, val=data[:, :, 1:]),
        lambda: attack.fit(model, (), seed=0),
        lambda: attack.fit(nn.Sequential(nn.Flatten(), nn.Linear(576, 10)), shape, seed=0),
        lambda: replace(attack, layers=("nowhere",)).fit(model, shape, seed=0),
        lambda: replace(attack, mean=(0.1, 0.2)).fit(model, shape, seed=0),
    ]
    options = ({"eps": 0.0}, {"lr": -1.0}, {"prior": "some"}, {"max_iter": 0}, {"bounds": (1.0, 0.0)})
    cases += [lambda o=o: replace(attack, **o) for o in options]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_fools_more_often_than_random_signs_of_the_same_size(attack, setting):
    model, val, x = setting
    signs = torch.rand(8, 1, *x.shape[1:], generator=torch_rng(0, "signs")).round() * 2 - 1
    random = [fooling_rate(model, x, Perturbation(EPS * s, (0.0, 1.0), ())) for s in signs]
    rates = [fooling_rate(model, x, attack.fit(model, x.shape[1:], seed=k, val=val)) for k in range(3)]
    assert min(rates) >= 1.5 * sum(random) / len(random)
