"""The contract of unlearners, over every exported one of classes; those of numbers have a suite beside this one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import assay.unlearn
from assay.compress import MagnitudePruning
from assay.data import Data, load_data
from assay.nets import SmallCNN
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Access, Subject
from assay.training import Supervised
from assay.unlearn import FineTune, Unlearner, forget_set

# Rates at which the small test network forgets; the defaults are the papers', for large ones.
OPTIONS = {
    "NegGrad": {"lr": 2e-3},
    "FineTune": {"lr": 0.02},
    "L1SparseUnlearn": {"lr": 0.02},
    "CFk": {"lr": 0.02, "layers": 2},
    "EUk": {"layers": 2},
    "NegGradPlus": {"lr": 0.005, "epochs": 3},
    "LAF": {"lr_ue": 1e-3, "lr_ra": 4e-3, "tau": 1.0, "epochs": 16, "batch_size": 32, "vae_epochs": 8},
    "SalUn": {"lr": 0.1, "batch_size": 64, "epochs": 4, "mode": "mixed"},
    "SoftSalUn": {"lr": 0.05, "batch_size": 64, "epochs": 4, "mode": "mixed"},
    "RandomLabel": {"lr": 0.02, "batch_size": 64, "epochs": 4, "mode": "mixed"},
    "BadTeacher": {"lr": 2e-3, "batch_size": 64, "epochs": 3},
    "SCRUB": {"lr": 2e-3},
    "BoundaryShrink": {"lr": 1e-3},
    # Whole classes: each sample is moved off its neighbours in other classes, by more than a retrained model has it.
    "ManiFSMC": {"margin": 1.0, "lr": 5e-3, "epochs": 2},
    "SelectiveSynapticDampening": {"alpha": 5.0, "lam": 0.3, "importance": "sample"},
    "FisherForgetting": {"strength": 0.01},
    "SISA": {"shards": 1, "slices": 2},
    "InfluenceUnlearn": {"alpha": 3e-4, "n_fisher": 200},
    "OracleMatching": {"lr": 5e-3, "oracles": 1},
    "DatamodelMatching": {"lr": 5e-3, "models": 1, "proj_dim": 100, "multiplier": 10.0},
    "DatamodelDirect": {"models": 1, "proj_dim": 100, "multiplier": 10.0},
    "ModHiFiU": {"p": 0.3, "rule": "gap", "compensate": True},
    "PruneFirstThenUnlearn": {"pruner": MagnitudePruning(sparsity=0.8), "unlearner": FineTune(lr=0.02)},
}
METHODS = [
    c
    for c in (getattr(assay.unlearn, name) for name in assay.unlearn.__all__)
    if getattr(c, "kind", None) == "unlearner"
    and c is not Unlearner
    and getattr(c, "task", "classification") == "classification"
]
unlearners = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def make(cls: type[Unlearner]) -> Unlearner:
    return cls(**OPTIONS.get(cls.__name__, {}))


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train"), Supervised(epochs=10)
    with seeded(0, "test"):
        model = SmallCNN(widths=(8, 16), hidden=32)
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return forget_set(subject.training("the test"), "class=3")


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def right(model: nn.Module, data: Data) -> float:
    return float((predict(model, data.x).argmax(1) == data.y).float().mean())


def test_the_suite_sees_methods() -> None:
    assert {"Retrain", "FineTune", "NegGrad"} <= {c.__name__ for c in METHODS}


@unlearners
def test_same_seed_same_model_and_nothing_else_changes(
    cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]
) -> None:
    model = subject.model
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, parts[1].x.clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = make(cls).forget(subject, *parts, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert same_state(first, make(cls).forget(subject, *parts, seed=1))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(parts[1].x, x)
    assert not any(m.training or m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not first.training


@unlearners
def test_forgets_and_its_control_does_not(cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    known = right(subject.model, forget)
    after = right(make(cls).forget(subject, forget, retain, seed=0), forget)
    control = make(cls).control(subject, forget, retain, seed=0)
    assert known > 0.9
    assert after < known - 0.1
    assert right(control, forget) > known - 0.05


@unlearners
def test_the_last_stage_is_what_forgetting_gives(
    cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]
) -> None:
    method = make(cls)
    stages = method.stages(subject, *parts, seed=2)
    last = method.forget(subject, *parts, seed=2)
    assert len(stages) == getattr(method, "epochs", 1)
    assert same_state(stages[-1], last)
    assert not any(same_state(a, b) for a, b in pairwise(stages))
    assert not any(m.training for stage in stages for m in stage.modules())


@unlearners
def test_access_and_bad_sets(cls: type[Unlearner], subject: Subject, parts: tuple[Data, Data]) -> None:
    forget, retain = parts
    method = make(cls)
    with pytest.raises(AccessError, match="WEIGHTS"):
        method.forget(subject.with_model(subject.model, access=Access.SCORE), forget, retain, seed=0)
    with pytest.raises(AccessError, match="training data"):
        method.forget(subject.with_model(subject.model, train=None), forget, retain, seed=0)
    with pytest.raises(InputError, match="disjoint"):
        method.forget(subject, forget, subject.train, seed=0)
    with pytest.raises(InputError, match="not in 'digits:train'"):
        method.forget(subject, subject.test, retain, seed=0)
