"""SimSiam's loss against its formula, and what training does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from assay.data import load_data
from assay.represent import Augmentation, SimSiam, linear_classifier, simsiam_loss
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

SHORT = SimSiam(
    dim=32,
    pred_dim=8,
    augment=Augmentation(scale=(0.8, 1.0), flip=False),
    epochs=2,
    batch_size=64,
    optimizer="adam",
    lr=2e-3,
)


def backbone() -> nn.Module:
    with seeded(0, "net"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU())


def test_loss_is_its_formula_and_stops_at_the_projections() -> None:
    g = torch_rng(0, "z")
    p1, z1, p2, z2 = (torch.randn(7, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(4))
    loss = simsiam_loss(p1, z1, p2, z2)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        x, y = a.detach().numpy(), b.detach().numpy()
        return float(np.mean((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)))

    assert float(loss.detach()) == pytest.approx(-(cosine(p1, z2) + cosine(p2, z1)) / 2, abs=1e-12)
    loss.backward()
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad is not None
    assert float(simsiam_loss(z1, z2, z2, z1).detach()) == pytest.approx(-1.0)


def test_views_come_nearer_and_features_do_not_collapse() -> None:
    data, net = load_data("digits:train").limit(400), backbone()
    before = [p.clone() for p in net.parameters()]
    encoder = SHORT.fit(net, data, seed=0)
    again, other = (SHORT.fit(net, data, seed=k) for k in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with torch.no_grad():
        found = encoder(data.x)
        assert torch.equal(found, again(data.x))
        assert not torch.equal(found, other(data.x))
    assert found.shape == (400, 32)
    assert not encoder.training
    unit = nn.functional.normalize(found, dim=1)
    assert float(unit.std(0).mean()) > 0.3 / 32**0.5  # 1 / sqrt(d) where spread evenly, 0 where collapsed


def test_linear_classifier_reads_the_labels_of_a_frozen_backbone() -> None:
    data, net = load_data("digits:train"), backbone()
    test = load_data("digits:test")
    linear = linear_classifier(net, data, seed=0, epochs=10, augment=SHORT.augment, views=1)
    with torch.no_grad():
        assert float((linear(net(test.x)).argmax(1) == test.y).double().mean()) > 0.8


def test_bad_options() -> None:
    data = load_data("digits:train")
    with pytest.raises(InputError, match="at least 2"):
        SHORT.fit(backbone(), data[:1], seed=0)
    with pytest.raises(InputError, match="widths"):
        SimSiam(dim=0).fit(backbone(), data[:4], seed=0)
    with pytest.raises(InputError, match="batches of 2"):
        SimSiam(batch_size=1).fit(backbone(), data[:4], seed=0)
    maps = nn.Conv2d(1, 2, 3)
    for call in (lambda: SHORT.fit(maps, data[:4], seed=0), lambda: linear_classifier(maps, data[:4], seed=0)):
        with pytest.raises(InputError, match=r"expected \(., w\)"):
            call()


def test_double_precision_stays() -> None:
    data, net = load_data("digits:train").limit(8), backbone().double()
    double = replace(data, x=data.x.double())
    assert replace(SHORT, epochs=1).fit(net, double, seed=0)(double.x).dtype == torch.float64
    assert linear_classifier(net, double, seed=0, epochs=1).weight.dtype == torch.float64
