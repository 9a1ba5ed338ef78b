"""The contract of selectors, over every exported one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import assay.curate
from assay.curate import Selector
from assay.data import Data, load_data
from assay.nets import SmallCNN
from assay.runtime.errors import AccessError, InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised

# Short runs of a small network; the defaults are the papers', for large ones.
OPTIONS = {"DataDiet": {"n_models": 2, "epochs": 6, "trainer": Supervised()}}
METHODS = [
    c
    for c in (getattr(assay.curate, name) for name in assay.curate.__all__)
    if getattr(c, "kind", None) == "selector" and c is not Selector
]
selectors = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


def make(cls: type[Selector], **options: object) -> Selector:
    return cls(**{**OPTIONS.get(cls.__name__, {}), **options})


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with seeded(0, "test"):
        return SmallCNN(widths=(8, 16), hidden=32)


def test_the_suite_sees_methods() -> None:
    assert {"DataDiet", "RandomSubset"} <= {c.__name__ for c in METHODS}


@selectors
@pytest.mark.parametrize("n", [1, 137, 300])
def test_n_distinct_positions(cls: type[Selector], model: nn.Module, data: Data, n: int) -> None:
    rows = make(cls).select(model, data[:300], n, seed=0)
    assert rows.dtype == torch.int64
    assert rows.shape == (n,)
    assert (rows.diff() > 0).all()
    assert 0 <= int(rows[0]) <= int(rows[-1]) < 300


@selectors
def test_same_seed_same_rows_and_another_seed_others(cls: type[Selector], model: nn.Module, data: Data) -> None:
    part = data[:300]
    torch.manual_seed(1)
    first = make(cls).select(model, part, 150, seed=0)
    torch.rand(3)
    assert torch.equal(first, make(cls).select(model, part, 150, seed=0))
    assert not torch.equal(first, make(cls).select(model, part, 150, seed=1))


@selectors
def test_leaves_model_data_and_global_randomness_alone(cls: type[Selector], model: nn.Module, data: Data) -> None:
    part = data[:100]
    model.train()
    before, x, y = {k: v.clone() for k, v in model.state_dict().items()}, part.x.clone(), part.y.clone()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    make(cls).select(model, part, 50, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(part.x, x)
    assert torch.equal(part.y, y)


@selectors
def test_what_is_kept_teaches(cls: type[Selector], model: nn.Module, data: Data) -> None:
    test = load_data("digits:test")
    subject = Subject(model, test, data, recipe=Supervised(epochs=8))
    trained = make(cls, keep=0.75).repair(subject, seed=0)
    # A selector that keeps one class, or one half of the classes, stays below 0.6.
    assert (predict(trained, test.x).argmax(1) == test.y).float().mean() > 0.8
    assert not trained.training


@selectors
def test_control_trains_on_another_half(cls: type[Selector], model: nn.Module, data: Data) -> None:
    subject = Subject(model, load_data("digits:test"), data[:200], recipe=Supervised(epochs=1))
    repaired, control = (getattr(make(cls), name)(subject, seed=0) for name in ("repair", "control"))
    assert control is None or any(
        not torch.equal(a, b) for a, b in zip(repaired.parameters(), control.parameters(), strict=True)
    )


@selectors
def test_bad_input(cls: type[Selector], model: nn.Module, data: Data) -> None:
    part = data[:50]
    for n in (0, 51):
        with pytest.raises(InputError, match=f"n={n} of 50"):
            make(cls).select(model, part, n, seed=0)
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match="keep"):
            make(cls, keep=keep)
    outside = data[:50]
    object.__setattr__(outside, "x", outside.x + 2)
    with pytest.raises(InputError, match="spans"):
        make(cls).select(model, outside, 10, seed=0)
    with pytest.raises(AccessError, match="recipe"):
        make(cls).repair(Subject(model, load_data("digits:test"), part), seed=0)
    with pytest.raises(AccessError, match="training data"):
        make(cls).repair(Subject(model, load_data("digits:test")), seed=0)
