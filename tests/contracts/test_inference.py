"""The contract that every exported membership-inference attack keeps."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import assay.privacy as room
from assay.data import Data, load_data
from assay.nets import MLP
from assay.privacy import RMIA, LiRA, Reference, train_shadows
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import Supervised

FOUND = [c for c in (getattr(room, n) for n in room.__all__) if getattr(c, "kind", None) == "inference"]
OVERFIT = Supervised(epochs=80, batch_size=32, lr=1e-2)
N = 100


def _small(cls: type) -> Any:
    return cls(models=8) if "models" in {f.name for f in fields(cls)} else cls()


METHODS = [*map(_small, FOUND), LiRA(models=8, online=False), RMIA(models=8, online=False)]
every = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}-{getattr(m, 'online', '')}")


@dataclass(frozen=True)
class Case:
    """A model that learned its noisy members by heart, one that saw neither, and what the adversary has."""

    overfitted: nn.Module
    stranger: nn.Module
    pool: Data
    member: np.ndarray
    fitted: dict[int, Any]


def noisy(data: Data) -> Data:
    """A third of the labels drawn anew: what is learned of those is learned by heart."""
    rng = torch_rng(3, "noise")
    y = torch.where(torch.rand(len(data), generator=rng) < 0.33, torch.randint(10, (len(data),), generator=rng), data.y)
    return replace(data.with_y(y), index=torch.arange(len(data)))


@pytest.fixture(scope="module")
def case() -> Case:
    data = noisy(load_data("digits:train"))
    pool, rest, unseen = data[: 2 * N], data[2 * N : 3 * N], data[3 * N : 5 * N]
    with seeded(0, "init"):
        start = MLP(hidden=(64,))
    # The shadow attacks read the pool, with one set of models for all; the others samples that the target did not see.
    shadows = train_shadows(Reference(data=pool, model=start, recipe=OVERFIT), 8, seed=5)
    other = Reference(data=unseen, model=start, recipe=OVERFIT)
    fitted = {id(m): m.from_shadows(shadows) if "from_shadows" in dir(m) else m.fit(other, seed=5) for m in METHODS}
    model = OVERFIT.fit(start, pool[:N], seed=1)
    return Case(model, OVERFIT.fit(start, rest, seed=1), pool, np.repeat([1, 0], N), fitted)


def test_the_room_has_attacks() -> None:
    assert {c.__name__ for c in FOUND} >= {"LossThreshold", "ClassLoss", "CalibratedLoss", "LiRA", "RMIA"}


@every
def test_finds_members_of_an_overfitted_model(method: Any, case: Case) -> None:
    assert roc_auc_score(case.member, case.fitted[id(method)].score(case.overfitted, case.pool)) > 0.65


@every
def test_is_at_chance_on_a_model_that_saw_neither(method: Any, case: Case) -> None:
    auc = roc_auc_score(case.member, case.fitted[id(method)].score(case.stranger, case.pool))
    deviation = ((2 * N + 1) / (12 * N * N)) ** 0.5  # of the Mann-Whitney statistic without any effect
    assert abs(auc - 0.5) < 3 * deviation


@every
def test_one_finite_score_a_sample_in_any_order_and_batch(method: Any, case: Case) -> None:
    fitted = case.fitted[id(method)]
    whole = fitted.score(case.overfitted, case.pool)
    assert whole.shape == (2 * N,)
    assert whole.dtype == torch.float64
    assert torch.isfinite(whole).all()
    rows = torch.tensor([150, 3, 77])
    torch.testing.assert_close(fitted.score(case.overfitted, case.pool[rows]), whole[rows], rtol=1e-4, atol=1e-4)


@every
def test_same_seed_same_result_and_nothing_changes(method: Any) -> None:
    data = load_data("digits:train")[:60]
    data = replace(data, index=torch.arange(60))
    with seeded(0, "init"):
        model = MLP(hidden=(8,))
    model.train()
    reference = Reference(data=data, model=model, recipe=Supervised(epochs=1, batch_size=16))
    state, x, torch_state = copy.deepcopy(model.state_dict()), data.x.clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = method.fit(reference, seed=2).score(model, data)
    again = replace(method, batch_size=7).fit(reference, seed=2).score(model, data)
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-4)
    assert method.fit(reference, seed=2).score(model, data).equal(first)
    if hasattr(method, "models"):
        assert not method.fit(reference, seed=3).score(model, data).allclose(first)
    assert all(state[k].equal(v) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert data.x.equal(x)
    assert torch_state.equal(torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002


@every
def test_bad_input(method: Any, case: Case) -> None:
    fitted = case.fitted[id(method)]
    narrow = MLP(classes=3)
    with pytest.raises(InputError, match="expected 0 to 2"):
        fitted.score(narrow, case.pool)
    broken = copy.deepcopy(case.overfitted)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="finite"):
        fitted.score(broken, case.pool)
    if type(method).__name__ != "LossThreshold":
        with pytest.raises(InputError, match="no reference"):
            method.fit()
