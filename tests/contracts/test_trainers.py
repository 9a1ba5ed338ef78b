"""The contract of trainers, over every exported one."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import fields

import pytest
import torch
from torch import nn

from assay.data import Data, load_data
from assay.nets import MLP, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.training import Trainer

ROOMS = ("training", "attacks", "defenses", "labels", "dynamics", "certify", "privacy", "calibrate", "adapt")


def exported() -> list[type[Trainer]]:
    rooms = [importlib.import_module(f"assay.{r}") for r in ROOMS if importlib.util.find_spec(f"assay.{r}")]
    found = [getattr(room, name) for room in rooms for name in room.__all__]
    methods = [c for c in found if isinstance(c, type) and getattr(c, "kind", None) == "trainer"]
    # A trainer that states no objective and no fit of its own is a base class.
    return [c for c in methods if c.objective is not Trainer.objective or c.fit is not Trainer.fit]


METHODS = exported()
trainers = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)
# One that trains the head alone needs a trained network below it, and one that plants a fault a trained network to
# plant it in: their own tests show what they learn. What also learns without labels (mu) has a suite of its own.
NEEDS_TRAINED = {"head", "max_float_drop", "mu"}
learners = pytest.mark.parametrize(
    "cls", [c for c in METHODS if not NEEDS_TRAINED & {f.name for f in fields(c)}], ids=lambda c: c.__name__
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def network(seed: int = 0) -> nn.Module:
    with seeded(seed, "test"):
        return SmallCNN(widths=(8, 16), hidden=32)


def snapshot(model: nn.Module) -> list[object]:
    state = [(k, v.clone()) for k, v in model.state_dict().items()]
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [state, flags, modules]


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_supervised_is_among_them() -> None:
    assert "Supervised" in {c.__name__ for c in METHODS}


@trainers
def test_same_seed_same_weights_and_another_seed_others(cls: type[Trainer], data: Data) -> None:
    small, model = data.limit(200), network()
    first, second, other = (cls(epochs=1).fit(model, small, seed=s) for s in (0, 0, 1))
    assert same_state(first, second)
    assert not same_state(first, other)


@trainers
def test_leaves_model_data_and_global_randomness_alone(cls: type[Trainer], data: Data) -> None:
    small, model = data.limit(100), network().train()
    before, x, y = snapshot(model), small.x.clone(), small.y.clone()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    trained = cls(epochs=1).fit(model, small, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    after = snapshot(model)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    assert torch.equal(small.x, x)
    assert torch.equal(small.y, y)
    assert not same_state(trained, model)
    assert not trained.training


@trainers
def test_does_not_depend_on_the_global_generator(cls: type[Trainer], data: Data) -> None:
    small, model = data.limit(100), network()
    torch.manual_seed(1)
    first = cls(epochs=1).fit(model, small, seed=0)
    torch.manual_seed(2)
    assert same_state(first, cls(epochs=1).fit(model, small, seed=0))


@learners
def test_learns(cls: type[Trainer], data: Data) -> None:
    test, model = load_data("digits:test"), network()
    trained = cls(epochs=4).fit(model, data, seed=0)
    accuracy = (predict(trained, test.x).argmax(1) == test.y).float().mean()
    # Chance is 0.1; an objective that ignores its labels stays there.
    assert accuracy > 0.5


@learners
def test_learns_what_the_labels_say(cls: type[Trainer], data: Data) -> None:
    test, model = load_data("digits:test"), network()
    trained = cls(epochs=10).fit(model, data.with_y((data.y + 1) % 10), seed=0)
    predicted = predict(trained, test.x).argmax(1)
    assert (predicted == (test.y + 1) % 10).float().mean() > 0.5


@trainers
def test_bad_inputs(cls: type[Trainer], data: Data) -> None:
    x = data.x[:4].clone()
    x[0, 0, 0, 0] = 2.0
    outside = data[:4]
    object.__setattr__(outside, "x", x)
    with pytest.raises(InputError, match="spans"):
        cls(epochs=1).fit(network(), outside, seed=0)
    with pytest.raises(InputError, match="lr"):
        cls(lr=-1.0).fit(network(), data[:4], seed=0)


@trainers
def test_control_has_the_same_plan(cls: type[Trainer]) -> None:
    method = cls(epochs=3, lr=0.01, batch_size=17, optimizer="sgd")
    assert method.plain().plan() == method.plan()


def test_a_frozen_model_is_refused(data: Data) -> None:
    model = MLP().requires_grad_(False)
    with pytest.raises(InputError, match="gradient"):
        METHODS[0](epochs=1).fit(model, data[:4], seed=0)
