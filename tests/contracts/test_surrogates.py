"""The contract of surrogates, over every exported one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import assay.attacks as room
from assay.attacks import Surrogate, Surrogates
from assay.data import Data, load_data
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded

METHODS = [
    c
    for c in (getattr(room, name) for name in room.__all__)
    if getattr(c, "kind", None) == "surrogate" and not c.__dict__.get("contract", False)
]
SHORT: dict[str, dict[str, Any]] = {
    "CyclicalSGLD": {"cycles": 2, "epochs_per_cycle": 3, "samples_per_cycle": 2, "lr": 0.2, "temperature": 0.01},
    "SnapshotSurrogate": {"cycles": 2, "epochs_per_cycle": 3, "samples_per_cycle": 2, "lr": 0.2},
    "DeepEnsembleSurrogate": {"members": 2, "epochs": 3, "lr": 0.05},
    "SWAGSurrogate": {"samples": 3, "epochs": 3, "collect": 3, "lr": 0.05},
}
surrogates = pytest.mark.parametrize(
    "method", [c(**SHORT[c.__name__]) for c in METHODS], ids=lambda m: type(m).__name__
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


def network(seed: int = 0) -> nn.Module:
    with seeded(seed, "net"):
        return MLP(hidden=(32,))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_room_has_surrogates() -> None:
    assert {"CyclicalSGLD", "SnapshotSurrogate", "DeepEnsembleSurrogate", "SWAGSurrogate"} <= set(SHORT)
    assert {c.__name__ for c in METHODS} == set(SHORT)


@surrogates
def test_same_seed_same_networks_and_another_seed_others(method: Surrogate, data: Data) -> None:
    small, start = data[:150], network()
    torch.manual_seed(1)
    first = method.fit(start, small, seed=0)
    torch.manual_seed(2)
    assert same(first, method.fit(start, small, seed=0))
    assert not same(first, method.fit(start, small, seed=1))


@surrogates
def test_start_data_and_global_randomness_stay_as_they_are(method: Surrogate, data: Data) -> None:
    with seeded(0, "net"):
        start = ResNet((1, 8, 8), width=4).train()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    small = data[:80]
    x, y = small.x.clone(), small.y.clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = method.fit(start, small, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in start.modules())
    assert all(p.requires_grad and p.grad is None for p in start.parameters())
    assert torch.equal(small.x, x)
    assert torch.equal(small.y, y)
    assert not any(m.training for m in found.modules())
    assert all(p.grad is None for p in found.parameters())


@surrogates
def test_each_network_has_learnt_and_they_differ(method: Surrogate, data: Data) -> None:
    longer = {"SWAGSurrogate": {"epochs": 8}, "DeepEnsembleSurrogate": {"epochs": 6}}
    cycles = {"epochs_per_cycle": 6} if hasattr(method, "cycles") else {}
    found = replace(method, **longer.get(type(method).__name__, cycles)).fit(network(), data, seed=0)
    test = load_data("digits:test")
    logits = [predict(net, test.x) for net in found.samples]
    assert all((z.argmax(1) == test.y).float().mean() > 0.7 for z in logits)
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(logits) for b in logits[:i])
    torch.testing.assert_close(predict(found, test.x), torch.stack(logits).mean(0))
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    torch.testing.assert_close(found.predict_proba(test.x, batch_size=100), mean)


@surrogates
def test_bad_input(method: Surrogate, data: Data) -> None:
    outside = data[:20]
    object.__setattr__(outside, "x", outside.x + 2)
    with pytest.raises(InputError, match="spans"):
        method.fit(network(), outside, seed=0)
    for field in ("lr", "batch_size"):
        with pytest.raises(InputError, match=field):
            replace(method, **{field: 0})
    with pytest.raises(InputError, match="at least one"):
        Surrogates([])
