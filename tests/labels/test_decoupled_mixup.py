"""Decoupled mixup and Manifold Mixup as trainers: what each step minimises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.labels import CutMix, DecoupledMixup, EarlyStoppedMixup, ManifoldMixup, Mixup
from assay.losses import DecoupledBCELoss, DecoupledMixupLoss
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State

TINY = {"epochs": 2, "batch_size": 16, "lr": 0.01}


def _data(n: int = 48) -> Data:
    g = torch.Generator().manual_seed(0)
    return Data(torch.rand(n, 3, 6, 6, generator=g), torch.arange(n) % 3, ("0", "1", "2"))


def _net() -> MLP:
    with seeded(1, "net"):
        return MLP((3, 6, 6), 3, (8, 7))


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("mixing", [Mixup(), CutMix(), ManifoldMixup()])
def test_without_eta_it_is_the_mixing_alone(mixing: Mixup) -> None:
    data, net = _data(), _net()
    method = DecoupledMixup(mixing=mixing, eta=0.0, **TINY)
    assert method.plain() == type(mixing)(**TINY)
    plain = method.plain().fit(net, data, seed=3)
    assert _same(method.fit(net, data, seed=3), plain)
    assert not _same(DecoupledMixup(mixing=mixing, eta=1.0, **TINY).fit(net, data, seed=3), plain)


@pytest.mark.parametrize("form", ["ce", "bce"])
def test_mixup_that_ends_early_ends_under_a_decoupled_objective_too(form: Any) -> None:
    data, net = _data(), _net()
    batch, method = data.batch(torch.arange(16)), DecoupledMixup(mixing=EarlyStoppedMixup(stop=0.5), form=form, eta=1.0)
    always = DecoupledMixup(form=form, eta=1.0)
    early, late = State(5, data, 9, step=1), State(5, data, 9, step=5)
    assert torch.equal(method.objective(net, batch, early), always.objective(net, batch, early))
    whole = method.loss()(net(batch.x), batch.y, batch.y, 1.0)
    assert torch.equal(method.objective(net, batch, late), whole)


def test_objective_is_the_loss_of_the_mixture() -> None:
    data, net = _data(), _net()
    batch, state, mixing = data.batch(torch.arange(16)), State(5, data, 9, step=1), Mixup(alpha=2.0)
    share, (_, partner) = mixing.share(state), mixing.partners(batch, state)
    logits = net(share * batch.x + (1 - share) * batch.x[partner])
    for options, loss in (
        ({"eta": 0.6, "mode": "less", "scale": "pow", "xi": 0.9, "t": 0.5},
         DecoupledMixupLoss(0.6, "less", scale="pow", xi=0.9, t=0.5)),
        ({"form": "bce", "xi": 0.8, "t": 1.0}, DecoupledBCELoss(0.8, 1.0)),
    ):  # fmt: skip
        expected = loss(logits, batch.y, batch.y[partner], share)
        assert torch.equal(DecoupledMixup(mixing=mixing, **options).objective(net, batch, state), expected)


def test_manifold_mixup_mixes_what_enters_the_layer() -> None:
    data, net = _data(), _net()
    batch, seen = data.batch(torch.arange(16)), set()
    layers = [m for m in net.body if isinstance(m, nn.Linear)]
    assert ManifoldMixup().eligible(net) == layers
    for step in range(8):
        state, method = State(5, data, 9, step=step), ManifoldMixup()
        share, (_, partner) = method.share(state), method.partners(batch, state)
        flat = batch.x.flatten(1)
        hidden = net.body[:3](flat)
        inputs = net(share * batch.x + (1 - share) * batch.x[partner])
        states = net.head(net.body[3:](share * hidden + (1 - share) * hidden[partner]))
        expected = [share * F.cross_entropy(z, batch.y) + (1 - share) * F.cross_entropy(z, batch.y[partner])
                    for z in (inputs, states)]  # fmt: skip
        found = method.objective(net, batch, state)
        near = [torch.allclose(found, e, atol=1e-6) for e in expected]
        assert sum(near) == 1
        seen.add(near.index(True))
        named = ManifoldMixup(layers=("body.3",)).objective(net, batch, state)
        assert torch.allclose(named, expected[1], atol=1e-6)
    assert seen == {0, 1}
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_bad_options() -> None:
    data, net = _data(), _net()
    with pytest.raises(InputError, match="form"):
        DecoupledMixup(form="mse")
    with pytest.raises(InputError, match="eta"):
        DecoupledMixup(eta=-1.0)
    with pytest.raises(InputError, match="layers"):
        ManifoldMixup(layers=("nowhere",), **TINY).fit(net, data, seed=0)
