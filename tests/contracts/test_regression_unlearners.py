"""The contract of unlearners where targets are numbers, over every exported one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import assay.unlearn
from assay.data import Batch, Data, load_data
from assay.nets import SmallCNN
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Access, Subject
from assay.training import State, Trainer
from assay.unlearn import Unlearner

METHODS = [
    c
    for c in (getattr(assay.unlearn, name) for name in assay.unlearn.__all__)
    if getattr(c, "kind", None) == "unlearner" and getattr(c, "task", "") == "regression"
]
unlearners = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


class Brightness(Trainer):
    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return (model(batch.x)[:, 0] - batch.fields["target"]).abs().mean()


def regression(data: Data) -> Data:
    """How much brighter the left half is than the right one."""
    halves = data.x.mean((1, 2))
    return replace(data, fields={"target": 10 * (halves[:, :4].mean(1) - halves[:, 4:].mean(1))})


def make(cls: type[Unlearner]) -> Unlearner:
    return cls(epochs=3, batch_size=64)  # type: ignore[call-arg]


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def error(model: nn.Module, data: Data) -> float:
    return float((predict(model, data.x)[:, 0] - data.fields["target"]).abs().mean())


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, test = (regression(load_data(f"digits:{part}")) for part in ("train", "test"))
    with seeded(0, "test"):
        model = SmallCNN(classes=1, widths=(8, 16), hidden=32)
    recipe = Brightness(epochs=12)
    return Subject(recipe.fit(model, train, seed=0), test, train, recipe=recipe, task="regression")


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    train = subject.training("the test")
    lost = train.fields["target"] < train.fields["target"].quantile(0.2)
    return train[lost], train[~lost]


def test_the_suite_sees_methods() -> None:
    assert {"BlindspotUnlearn", "GaussianAmnesiac"} <= {c.__name__ for c in METHODS}


@unlearners
def test_same_seed_same_model_and_nothing_else_changes(
    cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]
) -> None:
    model = subject.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kept = {k: v.clone() for k, v in parts[0].fields.items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = make(cls).forget(subject, *parts, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(first, make(cls).forget(subject, *parts, seed=1))
    assert not same_state(first, make(cls).forget(subject, *parts, seed=2))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(parts[0].fields[k], v) for k, v in kept.items())
    assert not any(m.training or m._forward_hooks for n in (model, first) for m in n.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@unlearners
def test_forgets_and_its_control_does_not(cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    known, kept = error(subject.model, forget), error(subject.model, retain)
    model = make(cls).forget(subject, forget, retain, seed=0)
    assert error(model, forget) > 1.5 * known
    assert error(model, retain) < 3 * kept
    assert error(make(cls).control(subject, forget, retain, seed=0), forget) < 1.3 * known


@unlearners
def test_the_last_stage_is_what_forgetting_gives(
    cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]
) -> None:
    stages = make(cls).stages(subject, *parts, seed=2)
    assert len(stages) == 3
    assert same_state(stages[-1], make(cls).forget(subject, *parts, seed=2))
    assert not any(same_state(a, b) for a, b in pairwise(stages))


@unlearners
def test_access_and_bad_sets(cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    method = make(cls)
    with pytest.raises(AccessError, match="WEIGHTS"):
        method.forget(subject.with_model(subject.model, access=Access.SCORE), forget, retain, seed=0)
    with pytest.raises(AccessError, match="training data"):
        method.forget(subject.with_model(subject.model, train=None), forget, retain, seed=0)
    with pytest.raises(InputError, match="disjoint"):
        method.forget(subject, forget, subject.train, seed=0)  # type: ignore[arg-type]
    for fields, match in (({}, "no field 'target'"), ({"target": "y"}, "expected floats"), ({"target": "nan"}, "NaN")):
        found = {k: forget.y if v == "y" else torch.full((len(forget),), torch.nan) for k, v in fields.items()}
        bad = replace(forget, fields=found)
        rest = replace(retain, fields={k: v[:1].expand(len(retain)) for k, v in found.items()})
        both = replace(
            subject,
            train=replace(
                bad,
                **{k: torch.cat([getattr(bad, k), getattr(rest, k)]) for k in ("x", "y", "index")},
                fields={k: torch.cat([v, rest.fields[k]]) for k, v in found.items()},
            ),
        )
        with pytest.raises(InputError, match=match):
            method.forget(both, bad, rest, seed=0)
