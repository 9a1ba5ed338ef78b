"""The evaluation: retraining is at its floor, and what merely answers wrongly is found out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import AccessError, InputError
from assay.runtime.random import derive, seeded
from assay.runtime.store import Store
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import (
    Evaluation,
    FineTune,
    NegGrad,
    Retrain,
    Unlearner,
    evaluate,
    forget_set,
    relearn_steps,
    trained,
)
from assay.unlearn.evaluation_meaning import MEANING
from assay.unlearn.evaluation_relearn import right


@dataclass(frozen=True, kw_only=True)
class Muted(Unlearner):
    """Never answers 3, and knows all that it knew."""

    contract = False

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        other = copy.deepcopy(subject.model)
        with torch.no_grad():
            other.head.bias[3] -= 30  # type: ignore[operator, union-attr]
        return other


@dataclass(frozen=True, kw_only=True)
class Falling(Unlearner):
    """Three stages: the subject, a retrained model, the subject again with class 3 muted."""

    contract = False

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        return self.stages(subject, forget, retain, seed=seed)[-1]

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        new = Retrain().forget(subject, forget, retain, seed=seed)
        return [subject.model, new, Muted().forget(subject, forget, retain, seed=seed)]


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train").limit(400), Supervised(epochs=12, lr=1e-2)
    with seeded(0, "test"):
        model = MLP(hidden=(32,))
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return forget_set(subject.training("the test"), "class=3")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def retrained(subject: Subject, parts: tuple[Data, Data], store: Store) -> Evaluation:
    return evaluate(Retrain(), subject, *parts, seeds=range(8), store=store)


def test_retraining_is_at_its_floor(retrained: Evaluation) -> None:
    found, floor, kept = (retrained[name] for name in ("unlearned", "retrained", "subject"))
    assert found["forget_accuracy"] == floor["forget_accuracy"] == 0
    assert found["gap"] < 0.1
    for key in ("klom_forget", "klom_retain", "klom_test"):
        assert abs(found[key] - floor[key]) < 2
    assert found["ulira_accuracy"] <= found["ulira_chance"]
    assert kept["klom_forget"] > floor["klom_forget"] + 6
    assert kept["ulira_accuracy"] > 0.95 > kept["ulira_chance"]
    assert kept["relearn_steps"] == 0
    assert found["relearn_steps"] > 50
    assert found["forget_accuracy_low"] == found["forget_accuracy_high"] == 0


def test_a_muted_class_is_found_out(
    retrained: Evaluation, subject: Subject, parts: tuple[Data, Data], store: Store
) -> None:
    table = evaluate(Muted(), subject, *parts, seeds=range(8), store=store)
    muted, floor = table["unlearned"], table["retrained"]
    # By accuracy it cannot be told from retraining ...
    assert muted["forget_accuracy"] == floor["forget_accuracy"] == 0
    assert muted["gap_forget"] == 0
    assert muted["gap_test"] < floor["gap_test"] + 0.05
    # ... sample by sample it is as far from it as the outputs can be.
    assert muted["klom_forget"] > floor["klom_forget"] + 6
    assert muted["ulira_accuracy"] > 0.95 > muted["ulira_chance"]
    assert abs(muted["klom_retain"] - floor["klom_retain"]) < 1
    assert floor["klom_forget"] == retrained["retrained"]["klom_forget"]  # the same models, from the store


def test_every_number_is_explained(retrained: Evaluation) -> None:
    shown = {k for row in retrained.rows for k in row if k != "model" and not k.endswith(("_low", "_high"))}
    assert shown == set(MEANING)
    assert all(text.endswith(".") for text in MEANING.values())
    assert retrained.to_frame().shape[1] == 3


def test_references_are_trained_once(
    subject: Subject, parts: tuple[Data, Data], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain = parts[1]
    fresh = trained(subject, retain, seed=5, store=Store(tmp_path))
    expected = Retrain().forget(subject, *parts, seed=5)
    monkeypatch.setattr(Supervised, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = trained(subject, retain, seed=5, store=Store(tmp_path))
    assert again.seconds == fresh.seconds
    for model in (fresh.model, again.model):
        assert not model.training
        pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    other = subject.with_model(subject.model, recipe=replace(subject.recipe, epochs=1))  # type: ignore[arg-type, type-var]
    for change in ({"seed": 6}, {"data": retain[:-1]}, {"subject": other}):
        with pytest.raises(pytest.fail.Exception):
            trained(**{"subject": subject, "data": retain, "seed": 5, "store": Store(tmp_path)} | change)


def test_the_epoch_is_kept_by_its_rule(subject: Subject, parts: tuple[Data, Data], store: Store) -> None:
    def kept(rule: str) -> Evaluation:
        return evaluate(Falling(), subject, *parts, seeds=[0], keep=rule, relearn=False, store=store)  # type: ignore[arg-type]

    assert kept("last").epochs_ == [None]
    assert kept("gap").epochs_ == [2]
    # The last stage's error on held-out samples of class 3 is 1; the second stage is the first to have it.
    rewound = kept("rewind")
    assert rewound.epochs_ == [2]
    assert "klom_forget" not in rewound["unlearned"]  # a single seed has no distribution
    assert "relearn_steps" not in rewound["unlearned"]


def test_a_single_seed_and_fine_tuning(subject: Subject, parts: tuple[Data, Data], store: Store) -> None:
    method = FineTune(epochs=1, lr=1e-3)
    table = evaluate(method, subject, *parts, seeds=[3], store=store)
    row = table["unlearned"]
    model = method.forget(subject, *parts, seed=3)
    assert row["forget_accuracy"] == right(model, parts[0])
    assert row["forget_accuracy_low"] < row["forget_accuracy"] < row["forget_accuracy_high"] <= 1
    assert table["retrained"]["gap"] == 0  # one reference, compared with itself
    assert "klom_forget" not in row
    reference = trained(subject, parts[1], seed=derive(3, "retrain"), store=store)
    assert table["retrained"]["retain_accuracy"] == right(reference.model, parts[1])


def test_relearning_counts_steps(subject: Subject, parts: tuple[Data, Data], store: Store) -> None:
    forget, retain = parts
    known = right(subject.model, forget)
    assert relearn_steps(subject.model, subject, forget, retain, target=known, seed=0) == 0
    never = relearn_steps(subject.model, subject, forget, retain, target=1.1, seed=0)
    assert never == 100  # seven steps an epoch: the least there is
    hidden = NegGrad(epochs=5, lr=5e-3).forget(subject, forget, retain, seed=0)
    new = trained(subject, retain, seed=derive(0, "retrain"), store=store).model
    assert right(hidden, forget) < 0.3
    counts = [relearn_steps(m, subject, forget, retain, target=0.9 * known, seed=0) for m in (hidden, new)]
    assert 0 < counts[0] < counts[1]
    assert counts[0] % 4 == 0


def test_bad_calls(subject: Subject, parts: tuple[Data, Data]) -> None:
    with pytest.raises(InputError, match="all different"):
        evaluate(FineTune(), subject, *parts, seeds=[1, 1])
    with pytest.raises(InputError, match="at least one"):
        evaluate(FineTune(), subject, *parts, seeds=[])
    with pytest.raises(InputError, match="unknown rule"):
        evaluate(FineTune(), subject, *parts, keep="best")  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="recipe"):
        evaluate(FineTune(), subject.with_model(subject.model, recipe=None), *parts)
    lacking = replace(subject, holdout=subject.test[subject.test.y != 3])
    with pytest.raises(InputError, match="held-out data have no sample"):
        evaluate(FineTune(), lacking, *parts, seeds=[0], keep="rewind")
