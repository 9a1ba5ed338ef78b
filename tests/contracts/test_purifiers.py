"""The contract of purifiers, over every exported one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

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
every = pytest.mark.parametrize("method", [c() for c in METHODS], ids=lambda m: type(m).__name__)


@pytest.fixture(scope="module")
def digits() -> Subject:
    return load("digits")


def train_of(subject: Subject, n: int = 300) -> Data:
    assert subject.train is not None
    return subject.train[:n]


def test_the_room_has_purifiers() -> None:
    assert len(METHODS) >= 4


@every
def test_the_map_keeps_shape_and_bounds_and_gives_the_same_again(method: Any, digits: Subject) -> None:
    data, x = train_of(digits), digits.test.x[:40].clone()
    state, before = torch.get_rng_state(), data.x.clone()
    first = method.fit(data, seed=3).eval()
    with torch.no_grad():
        out, parts = first(x), torch.cat([first(p) for p in x.split(7)])
        again = method.fit(data, seed=3)(x)
    assert out.shape == x.shape
    assert float(out.min()) >= data.bounds[0] - 1e-6
    assert float(out.max()) <= data.bounds[1] + 1e-6
    assert out.equal(again)
    torch.testing.assert_close(out, parts, rtol=1e-5, atol=1e-5)
    assert torch.get_rng_state().equal(state)
    assert data.x.equal(before)
    assert x.equal(digits.test.x[:40])
    assert not any(m.training for m in first.modules())


@every
def test_the_model_behind_it_keeps_most_of_its_accuracy_and_can_be_attacked_through(
    method: Any, digits: Subject
) -> None:
    data = digits.test[:100]
    weights = copy.deepcopy(digits.model.state_dict())
    guarded = method.repair(digits, seed=0)
    assert isinstance(guarded, Purified)
    right = predict(guarded, data.x).argmax(1) == data.y
    assert float(right.float().mean()) > 0.6
    x_adv = PGD(ball=Linf(0.2), bounds=data.bounds, steps=20)(guarded, data.x, data.y, seed=0)
    held = predict(guarded, x_adv).argmax(1) == data.y
    assert float(held.float().mean()) < float(right.float().mean()) - 0.2
    assert all(weights[k].equal(v) for k, v in digits.model.state_dict().items())
    assert method.control(digits, seed=0) is None


@every
def test_a_purified_subject_is_saved_and_loaded(method: Any, digits: Subject, tmp_path: Path) -> None:
    guarded = digits.with_model(method.repair(digits, seed=0))
    guarded.save(tmp_path / "subject")
    again = load(str(tmp_path / "subject"))
    assert predict(again.model, digits.test.x[:20]).equal(predict(guarded.model, digits.test.x[:20]))


@every
def test_bad_input(method: Any, digits: Subject) -> None:
    data = train_of(digits)
    nan = data.x.clone()
    nan[0] = torch.nan
    with pytest.raises(InputError, match="finite"):
        method.fit(Data(nan, data.y, data.classes), seed=0)
    with pytest.raises(AccessError, match="training data"):
        method.repair(Subject(model=digits.model, test=digits.test), seed=0)
