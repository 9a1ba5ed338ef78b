"""The contract that every exported identifier of platforms keeps, on four formats of a network for digits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.data import load_data
from assay.methods import exported
from assay.nets import SmallCNN
from assay.privacy import BorderInputs, LogitFingerprint, simulate_platform
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, predict
from assay.runtime.random import seeded
from assay.training import Supervised

FORMATS = ("fp32", "bf16", "fp8-e4m3")
Platforms = Mapping[str, nn.Module]


def _logits(platforms: Platforms, x: Tensor, batch: int) -> dict[str, Tensor]:
    return {name: predict(platform, x, batch_size=batch) for name, platform in platforms.items()}


def _labels(platform: nn.Module, batch: int) -> Callable[[Tensor], Tensor]:
    return lambda x: batched(lambda part: platform(part).argmax(1), x, batch_size=batch)


def _fit_logits(platforms: Platforms, x: Tensor, seed: int) -> Any:
    return LogitFingerprint().fit(_logits(platforms, x, 256), seed=seed)


def _fit_borders(platforms: Platforms, x: Tensor, seed: int) -> Any:
    return BorderInputs(steps=40, lr=(3e-2, 1e-4), check_every=1).fit(platforms, x[:16], seed=seed)


@dataclass(frozen=True)
class Way:
    """How a method is fitted, what its fitted object is asked, and what of it must be the same again."""

    fit: Callable[[Platforms, Tensor, int], Any]
    ask: Callable[[nn.Module, Tensor, int], Any]
    learned: Callable[[Any], list[Any]]


WAYS = {
    "LogitFingerprint": Way(
        _fit_logits,
        lambda platform, x, batch: predict(platform, x, batch_size=batch),
        lambda fitted: [e.coef_.tolist() for e in fitted.classifier_[-1].estimators_],
    ),
    "BorderInputs": Way(
        _fit_borders,
        lambda platform, _x, batch: _labels(platform, batch),
        lambda fitted: [(k, v.tolist(), fitted.labels_[k].tolist()) for k, v in fitted.images_.items()],
    ),
}
FOUND = exported("identifier")
every = pytest.mark.parametrize("name", WAYS)


@dataclass(frozen=True)
class Case:
    platforms: Platforms
    known: Tensor
    asked: Tensor


@pytest.fixture(scope="module")
def case() -> Case:
    data = load_data("digits:train")
    with seeded(0, "init"):
        start = SmallCNN((1, 8, 8), 10, (4, 8), 32)
    net = Supervised(epochs=15).fit(start, data[:400], seed=0)
    return Case({tag: simulate_platform(net, tag) for tag in FORMATS}, data.x[400:600], data.x[600:900])


@pytest.fixture(scope="module")
def fitted(case: Case) -> dict[str, Any]:
    return {name: way.fit(case.platforms, case.known, 1) for name, way in WAYS.items()}


def test_the_suite_knows_every_identifier() -> None:
    assert {name.partition(".")[2] for name in FOUND} == set(WAYS)
    assert all(cls() == cls() for cls in FOUND.values())


@every
@pytest.mark.parametrize("batch", [1, 300])
def test_names_every_known_platform_in_any_batch(name: str, batch: int, case: Case, fitted: dict[str, Any]) -> None:
    for tag, platform in case.platforms.items():
        votes = fitted[name].identify(WAYS[name].ask(platform, case.asked, batch))
        assert tuple(votes) == FORMATS
        assert all(isinstance(count, int) and count >= 0 for count in votes.values())
        assert fitted[name].name(WAYS[name].ask(platform, case.asked, batch)) == tag == max(votes, key=votes.get)


@every
def test_same_seed_same_result_and_nothing_changes(name: str, case: Case, fitted: dict[str, Any]) -> None:
    x, state = case.known.clone(), {t: copy.deepcopy(p.state_dict()) for t, p in case.platforms.items()}
    modes = {t: [m.training for m in p.modules()] for t, p in case.platforms.items()}
    hooks = {
        t: [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in p.modules()] for t, p in case.platforms.items()
    }
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    again = WAYS[name].fit(case.platforms, case.known, 1)
    assert WAYS[name].learned(again) == WAYS[name].learned(fitted[name])
    assert torch_state.equal(torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]  # noqa: NPY002
    assert case.known.equal(x)
    for tag, platform in case.platforms.items():
        assert all(v.equal(state[tag][k]) for k, v in platform.state_dict().items())
        assert modes[tag] == [m.training for m in platform.modules()]
        assert hooks[tag] == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in platform.modules()]
        assert all(p.requires_grad and p.grad is None for p in platform.parameters())


@every
def test_a_copy_is_not_told_from_its_original(name: str, case: Case) -> None:
    same = case.platforms["fp32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no border, or no plane between copies
        fitted = WAYS[name].fit({"one": same, "other": copy.deepcopy(same)}, case.known, 1)
    votes = [fitted.identify(WAYS[name].ask(p, case.asked, 64)) for p in (same, copy.deepcopy(same))]
    assert votes[0] == votes[1]


@every
def test_bad_input(name: str, case: Case) -> None:
    platforms = case.platforms
    with pytest.raises(InputError, match="at least two"):
        WAYS[name].fit({"fp32": platforms["fp32"]}, case.known, 0)
    with pytest.raises(InputError, match="expected the same for all"):
        WAYS[name].fit({"fp32": platforms["fp32"], "narrow": SmallCNN((1, 8, 8), 3)}, case.known, 0)
    with pytest.raises(InputError, match="expected"):
        WAYS[name].fit(platforms, case.known[:0], 0)
    with pytest.raises(InputError, match="finite"):
        WAYS[name].fit(platforms, torch.full_like(case.known, torch.nan), 0)
