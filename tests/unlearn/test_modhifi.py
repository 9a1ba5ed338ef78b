"""Zeroing the components of a class: which, in whose favour, and which logit is not brought back."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from assay.compress import SubsetFidelity
from assay.data import Data, load_data
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import ModHiFiU, forget_set


@pytest.fixture(scope="module")
def subject() -> Subject:
    train, recipe = load_data("digits:train"), Supervised(epochs=20)
    with seeded(0, "test"):
        model = MLP(hidden=(48,))
    return Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)


@pytest.fixture(scope="module")
def parts(subject: Subject) -> tuple[Data, Data]:
    return forget_set(subject.training("the test"), "class=3")


def zeroed(model: nn.Module) -> set[int]:
    return set((model.head.weight == 0).all(0).nonzero()[:, 0].tolist())


def share(model: nn.Module, data: Data) -> float:
    return float((predict(model, data.x).argmax(1) == 3).float().mean())


def test_it_zeroes_the_top_of_the_class_and_touches_nothing_else(subject: Subject, parts: tuple[Data, Data]) -> None:
    model = ModHiFiU(p=0.25).forget(subject, *parts, seed=0)
    lost, kept = (SubsetFidelity(layer_names=("head",)).fit(subject.model, d.x) for d in parts)
    assert zeroed(model) == set(lost.channel_scores("head").topk(12).indices.tolist())
    rest = [j for j in range(48) if j not in zeroed(model)]
    assert torch.equal(model.head.weight[:, rest], subject.model.head.weight[:, rest])
    assert torch.equal(model.head.bias, subject.model.head.bias)
    assert torch.equal(model.body[1].weight, subject.model.body[1].weight)
    gap = ModHiFiU(p=0.25, rule="gap").forget(subject, *parts, seed=0)
    scores = lost.channel_scores("head") - kept.channel_scores("head")
    assert zeroed(gap) == set(scores.topk(12).indices.tolist())


def test_compensation_spares_the_forgotten_logit_alone(subject: Subject, parts: tuple[Data, Data]) -> None:
    method = ModHiFiU(p=0.25, rule="gap", compensate=True)
    model, plain = (m.forget(subject, *parts, seed=0) for m in (method, replace(method, compensate=False)))
    assert torch.equal(model.head.weight[3], plain.head.weight[3])
    hidden, rest = subject.model.body(parts[1].x).double(), sorted(set(range(48)) - zeroed(model))
    for i in (0, 7):
        w = subject.model.head.weight[i].double()
        fitted = torch.linalg.lstsq(hidden[:, rest] * w[rest], (hidden @ w)[:, None], driver="gelsd").solution[:, 0]
        target = hidden[:, rest] @ (w[rest] * fitted)
        found = hidden[:, rest] @ model.head.weight[i, rest].double()
        assert float((found - target).square().mean()) <= 1e-3 * float((hidden @ w).square().mean())


def test_auto_stops_at_the_first_share_that_suffices(subject: Subject, parts: tuple[Data, Data]) -> None:
    model = ModHiFiU(p="auto").forget(subject, *parts, seed=0)
    assert share(model, parts[0]) <= 0.05
    p = len(zeroed(model)) / 48
    below = [s / 20 for s in range(1, 20) if math.ceil(s / 20 * 48) < round(p * 48)]
    assert all(share(ModHiFiU(p=s).forget(subject, *parts, seed=0), parts[0]) > 0.05 for s in below)


def test_a_hidden_layer_by_name(subject: Subject, parts: tuple[Data, Data]) -> None:
    model = ModHiFiU(p=0.1, layers=("body.1", "head")).forget(subject, *parts, seed=0)
    assert int((model.body[1].weight == 0).all(0).sum()) == math.ceil(6.4)
    assert len(zeroed(model)) == math.ceil(4.8)


def test_the_count_is_that_of_the_decimal_share(subject: Subject, parts: tuple[Data, Data]) -> None:
    with seeded(0, "wide"):
        wide = subject.with_model(MLP(hidden=(100,)))
    assert len(zeroed(ModHiFiU(p=0.07).forget(wide, *parts, seed=0))) == 7


def test_frozen_layers_are_refused(subject: Subject, parts: tuple[Data, Data]) -> None:
    frozen = copy.deepcopy(subject.model)
    frozen.head.weight.requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        ModHiFiU().forget(subject.with_model(frozen), *parts, seed=0)
    assert ModHiFiU(layers="body.1").forget(subject.with_model(frozen), *parts, seed=0) is not frozen


def test_errors(subject: Subject, parts: tuple[Data, Data]) -> None:
    for options in ({"p": 0.0}, {"p": 1.0}, {"p": "all"}, {"rule": "both"}, {"n_max": 0}):
        with pytest.raises(InputError):
            ModHiFiU(**options)
    with pytest.raises(InputError, match="unknown layer"):
        ModHiFiU(layers="heat").forget(subject, *parts, seed=0)
