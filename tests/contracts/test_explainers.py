"""Every explainer that assay.explain exports keeps the contract of its kind."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import nn

import assay.explain
from assay.data import load_data
from assay.explain import Explainer, GradientExplainer, deletion, insertion, lfa
from assay.nets import SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Supervised


def exported() -> list[type[Explainer]]:
    """The public concrete explainers of the room."""
    found = [getattr(assay.explain, name) for name in assay.explain.__all__]
    return [
        c
        for c in found
        if inspect.isclass(c) and getattr(c, "kind", None) == "explainer" and c not in (Explainer, GradientExplainer)
    ]


NAMED = {
    "LocalFunctionApproximation": partial(lfa.LocalFunctionApproximation, n_samples=50),
    "lime": partial(lfa.lime, n_samples=300, width=2.0),
    "c_lime": partial(lfa.c_lime, n_samples=300),
    "kernel_shap": partial(lfa.kernel_shap, n_samples=300),
    "occlusion": lfa.occlusion,
    "vanilla_gradient": lfa.vanilla_gradient,
    "gradient_input": lfa.gradient_input,
    "integrated_gradients": lfa.integrated_gradients,
}  # settings of LocalFunctionApproximation with few points; its own are those of smoothgrad
METHODS = {c.__name__: c for c in exported()} | NAMED
EXPLAINERS = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    data = load_data("digits:train")
    with seeded(0, "init"):
        model = SmallCNN(hidden=32, widths=(8, 16))
    model = Supervised(epochs=6).fit(model, data, seed=0)
    model.zero_grad()
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_data("digits:test")
    return data.x[:13], data.y[:13]


def test_the_room_exports_explainers() -> None:
    assert len(exported()) >= 5


@EXPLAINERS
def test_shape_dtype_and_same_seed(cls: type[Explainer], trained: nn.Module, batch: tuple) -> None:
    x, y = batch
    before = torch.get_rng_state()
    a, b = (cls().attribute(trained, x, y, seed=3) for _ in range(2))
    assert a.shape == x.shape
    assert a.dtype == x.dtype
    assert not a.requires_grad
    assert torch.equal(a, b)
    assert float(a.std()) > 0
    assert torch.equal(before, torch.get_rng_state())


@EXPLAINERS
def test_independent_of_batch_size(cls: type[Explainer], trained: nn.Module, batch: tuple) -> None:
    x, y = batch
    whole = cls().attribute(trained, x, y, seed=0)
    scale = float(whole.abs().max())
    for size in (1, 7, 120):
        assert torch.allclose(cls(batch_size=size).attribute(trained, x, y, seed=0), whole, atol=1e-5 * scale)
    part = cls().attribute(trained, x[4:9], y[4:9], seed=0, index=torch.arange(4, 9))
    assert torch.allclose(part, whole[4:9], atol=1e-5 * scale)


@EXPLAINERS
def test_nothing_is_modified(cls: type[Explainer], trained: nn.Module, batch: tuple) -> None:
    x, y = batch
    trained.train()
    next(trained.parameters()).requires_grad_(False)
    try:
        state = {k: v.clone() for k, v in trained.state_dict().items()}
        flags = [p.requires_grad for p in trained.parameters()]
        kept = x.clone()
        with torch.no_grad():
            cls().attribute(trained, x, y, seed=0)
        assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())
        assert [p.requires_grad for p in trained.parameters()] == flags
        assert all(m.training for m in trained.modules())
        assert all(not m._forward_hooks and not m._backward_hooks for m in trained.modules())
        assert all(p.grad is None for p in trained.parameters())
        assert torch.equal(x, kept)
        assert not x.requires_grad
        assert x.grad is None
    finally:
        trained.eval()
        next(trained.parameters()).requires_grad_(True)


@EXPLAINERS
def test_bad_input(cls: type[Explainer], trained: nn.Module, batch: tuple) -> None:
    x, y = batch
    nan = x.clone()
    nan[2] = float("nan")
    for bad_x, bad_y in (
        (nan, y),
        (x[:0], y[:0]),
        (x, y[:-1]),
        (x, y + 10),
        (x, y.float()),
        (x.long(), y),
        (x, y - 11),
    ):
        with pytest.raises(InputError):
            cls().attribute(trained, bad_x, bad_y, seed=0)
    with pytest.raises(InputError):
        cls().attribute(trained, x, y, seed=0, index=torch.arange(3))
    with pytest.raises(InputError):
        cls(batch_size=0)
    with pytest.raises(InputError):
        cls().attribute(nn.Flatten(0), x, y, seed=0)


@EXPLAINERS
def test_beats_a_random_ranking(cls: type[Explainer], trained: nn.Module) -> None:
    """The floor: mean deletion and insertion areas are clearly better than chance; chance itself is not."""
    data = load_data("digits:test")[:80]
    target = trained(data.x).argmax(1)
    chance = assay.explain.RandomAttribution().attribute(trained, data.x, target, seed=1)
    a = cls().attribute(trained, data.x, target, seed=0)
    gain = {}
    for sign, game in ((-1, deletion), (1, insertion)):
        pair = [game(trained, data.x, target, m, steps=8).auc.mean() for m in (chance, a)]
        gain[game.__name__] = float(sign * (pair[1] - pair[0]))
    if cls is assay.explain.RandomAttribution:
        assert max(abs(v) for v in gain.values()) < 0.05
    else:
        assert min(gain.values()) > 0.1, gain
