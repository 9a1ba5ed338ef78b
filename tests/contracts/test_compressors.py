"""The contract of compressors, over every exported one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import assay.compress
from assay.compress import Compressor, size_of
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.subject import Access, Subject, load

METHODS = [
    c
    for c in (getattr(assay.compress, name) for name in assay.compress.__all__)
    if getattr(c, "kind", None) == "compressor" and c is not Compressor
]
compressors = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load("digits")


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_suite_sees_methods() -> None:
    assert {"MagnitudePruning", "Quantisation", "RandomPruning"} <= {c.__name__ for c in METHODS}


@compressors
def test_same_seed_same_model(cls: type[Compressor], subject: Subject) -> None:
    first, second = (cls().compress(subject.model, subject.train, seed=5) for _ in range(2))
    assert same_state(first, second)
    assert not first.training


@compressors
def test_leaves_model_and_global_randomness_alone(cls: type[Compressor], subject: Subject) -> None:
    model = copy.deepcopy(subject.model).train()
    dict(model.named_parameters())["head.bias"].requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    cls().compress(model, subject.train, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]


@compressors
def test_is_smaller_and_only_touches_layer_weights(cls: type[Compressor], subject: Subject) -> None:
    small = cls().compress(subject.model, subject.train, seed=0)
    assert size_of(small).bits < 0.5 * size_of(subject.model).bits
    changed = dict(subject.model.named_parameters())
    kept = {n: p for n, p in small.named_parameters() if n.endswith("bias") and p.shape == changed[n].shape}
    assert all(torch.equal(p, changed[n]) for n, p in kept.items())
    assert "head.bias" in kept


@compressors
def test_repair_is_compress_and_needs_the_weights(cls: type[Compressor], subject: Subject) -> None:
    repaired = cls().repair(subject, seed=2)
    assert same_state(repaired, cls().compress(subject.model, subject.train, seed=2))
    assert cls().control(subject, seed=2) is None
    with pytest.raises(AccessError, match="WEIGHTS"):
        cls().repair(subject.with_model(subject.model, access=Access.GRADIENT), seed=0)


@compressors
def test_the_result_serves_any_batch_size(cls: type[Compressor], subject: Subject) -> None:
    small = cls().compress(subject.model, subject.train, seed=0)
    x = subject.test.x[:64]
    assert torch.allclose(predict(small, x, batch_size=7), predict(small, x, batch_size=64), atol=1e-5)


@compressors
def test_a_model_without_layers_is_refused(cls: type[Compressor]) -> None:
    with pytest.raises(InputError, match="no convolutional or linear layer"):
        cls().compress(nn.Flatten(), None, seed=0)
