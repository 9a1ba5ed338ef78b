"""The contract of purifiers, over every exported one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import assay.defenses as room
from assay.attacks import PGD, Linf
from assay.data import Data
from assay.defenses import Purified
from assay.methods import _is_contract
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.subject import Subject, load

METHODS = [
    c
    for c in (getattr(room, n) for n in room.__all__)
    if getattr(c, "kind", None) == "purifier" and not _is_contract(c)
]
SMALL: dict[str, dict[str, Any]] = {
    "RawDefense": {"width": 12, "isp_width": 8, "epochs": 5, "lr": 3e-3},
    "ResUpNet": {"width": 8, "epochs": 8, "encoder_epochs": 2, "batch_size": 32, "lr": 3e-3},
}
every = pytest.mark.parametrize(
    "method", [c(**SMALL.get(c.__name__, {})) for c in METHODS], ids=lambda m: type(m).__name__
)


@pytest.fixture(scope="module")
def digits() -> Subject:
    subject = load("digits")
    assert subject.train is not None
    return replace(subject, train=subject.train[:300])


@pytest.fixture(
    scope="module", params=[c(**SMALL.get(c.__name__, {})) for c in METHODS], ids=lambda m: type(m).__name__
)
def guarded(request: pytest.FixtureRequest, digits: Subject) -> nn.Module:
    """The digits model behind each purifier, which is fitted once."""
    before = copy.deepcopy(digits.model.state_dict())
    model: nn.Module = request.param.repair(digits, seed=0)
    assert all(before[k].equal(v) for k, v in digits.model.state_dict().items())
    assert request.param.control(digits, seed=0) is None
    return model


def train_of(subject: Subject) -> Data:
    assert subject.train is not None
    return subject.train


def test_the_room_has_purifiers() -> None:
    assert len(METHODS) >= 4


@every
def test_the_map_keeps_shape_and_bounds_and_gives_the_same_again(method: Any, digits: Subject) -> None:
    data, x = train_of(digits), digits.test.x[:40].clone()
    state, before = torch.get_rng_state(), data.x.clone()
    first, second = (method.fit(data[:150], seed=3) for _ in range(2))
    with torch.no_grad():
        out, parts = first(x), torch.cat([first(p) for p in x.split(7)])
        again = second(x)
    assert out.shape == x.shape
    assert float(out.min()) >= data.bounds[0] - 1e-6
    assert float(out.max()) <= data.bounds[1] + 1e-6
    assert out.equal(again)
    torch.testing.assert_close(out, parts, rtol=1e-5, atol=1e-5)
    assert torch.get_rng_state().equal(state)
    assert data.x.equal(before)
    assert x.equal(digits.test.x[:40])
    assert not any(m.training for m in first.modules())


def test_the_model_behind_it_still_reads_and_can_be_attacked_through(guarded: nn.Module, digits: Subject) -> None:
    data = digits.test[:100]
    assert isinstance(guarded, Purified)
    right = predict(guarded, data.x).argmax(1) == data.y
    assert float(right.float().mean()) > 0.4  # those that are learned have seen 300 images a few times
    x_adv = PGD(ball=Linf(0.2), bounds=data.bounds, steps=20)(guarded, data.x, data.y, seed=0)
    held = predict(guarded, x_adv).argmax(1) == data.y
    assert float(held.float().mean()) < float(right.float().mean()) - 0.2


def test_a_purified_subject_is_saved_and_loaded(guarded: nn.Module, digits: Subject, tmp_path: Path) -> None:
    digits.with_model(guarded).save(tmp_path / "subject")
    again = load(str(tmp_path / "subject"))
    assert predict(again.model, digits.test.x[:20]).equal(predict(guarded, digits.test.x[:20]))


@every
def test_bad_input(method: Any, digits: Subject) -> None:
    data = train_of(digits)
    nan = data.x.clone()
    nan[0] = torch.nan
    with pytest.raises(InputError, match="finite"):
        method.fit(Data(nan, data.y, data.classes), seed=0)
    with pytest.raises(AccessError, match="training data"):
        method.repair(Subject(model=digits.model, test=digits.test), seed=0)


def test_the_subjects_model_keeps_its_mode(digits: Subject) -> None:
    model = copy.deepcopy(digits.model).train()
    guarded = room.Blur().repair(digits.with_model(model), seed=0)
    assert model.training
    assert not guarded.training
    assert not any(m.training for m in guarded.modules())
