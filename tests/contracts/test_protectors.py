"""The contract of protectors: data that are published so that nothing is learned from them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import assay.privacy
from assay.data import Data, load_data
from assay.losses import KernelBayesError
from assay.nets import MLP
from assay.privacy import BayesErrorUnlearnable, ErrorMinNoise, Protector
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Supervised

METHODS = [
    c
    for c in (getattr(assay.privacy, name) for name in assay.privacy.__all__)
    if isinstance(c, type) and issubclass(c, Protector) and c is not Protector
]
protectors = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def network() -> nn.Module:
    with seeded(0, "protectors"):
        return MLP(hidden=(16,))


def make(cls: type[Protector], **options: Any) -> Protector:
    """The method at a size that suits a test."""
    if cls is BayesErrorUnlearnable:
        options = {"encoder": network(), "recipe": Supervised(epochs=2), "steps": 2, **options}
    if cls is ErrorMinNoise:
        options = {"encoder": network(), "rounds": 2, "pgd_steps": 3, **options}
    return cls(**{"eps": 0.1, **options})


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train").limit(120)


def test_the_suite_sees_methods() -> None:
    assert {c.__name__ for c in METHODS} >= {"BayesErrorUnlearnable", "ErrorMinNoise", "RandomNoise"}


@protectors
def test_same_seed_same_data_and_nothing_else_changes(cls: type[Protector], data: Data) -> None:
    x, method = data.x.clone(), make(cls)
    encoder = getattr(method, "encoder", None)
    before = copy.deepcopy(encoder.state_dict()) if encoder is not None else {}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = method.fit(data, seed=1).data
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(2)
    assert torch.equal(first.x, method.fit(data, seed=1).data.x)
    assert not torch.equal(first.x, method.fit(data, seed=2).data.x)
    assert torch.equal(data.x, x)
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in before.items())
    assert not first.x.requires_grad


@protectors
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_ball_and_bounds_and_keeps_the_rest(cls: type[Protector], norm: str, data: Data) -> None:
    eps = 0.1 if norm == "linf" else 0.8
    found = make(cls, eps=eps, norm=norm).fit(data, seed=0).data
    moved = (found.x - data.x).flatten(1)
    size = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert size.max() <= eps + 1e-6
    assert size.mean() > eps / 20
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    assert torch.equal(found.y, data.y)
    assert torch.equal(found.index, data.index)


@protectors
def test_no_room_moves_nothing(cls: type[Protector], data: Data) -> None:
    assert torch.equal(make(cls, eps=0.0).fit(data, seed=0).data.x, data.x)


@protectors
def test_bad_options(cls: type[Protector]) -> None:
    with pytest.raises(InputError, match="eps"):
        make(cls, eps=-0.1)
    with pytest.raises(InputError, match="norm"):
        make(cls, norm="l7")


def test_the_block_size_changes_nothing(data: Data) -> None:
    found = [
        make(BayesErrorUnlearnable, encoder=None, estimator=KernelBayesError(sigma=1.0, batch=b)).fit(data, seed=0)
        for b in (13, 512)
    ]
    assert torch.allclose(found[0].data.x, found[1].data.x, atol=1e-6)
