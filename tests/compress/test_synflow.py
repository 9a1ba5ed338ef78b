"""Synaptic flow: what is conserved, by hand, and no collapse of a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.compress import SynFlowPruning
from assay.compress.synflow import _magnitudes
from assay.nets import MLP, ResNet
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def homogeneous() -> nn.Module:
    with seeded(0, "net"):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 3, 2, bias=False), nn.ReLU(), nn.Flatten(),
            nn.Linear(12, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False),
        )  # fmt: skip


def test_every_layer_has_the_same_total() -> None:
    model = homogeneous()
    scores = SynFlowPruning(shape=(2, 8, 8)).flow(_magnitudes(model))
    totals = torch.stack([s.sum() for s in scores.values()])
    assert len(totals) == 4
    assert torch.allclose(totals, _magnitudes(model)(torch.ones(1, 2, 8, 8).double()).sum().expand(4), rtol=1e-12)


def test_scores_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[-4.0, 5.0]]))
    first, second = SynFlowPruning(shape=(2,)).flow(_magnitudes(model)).values()
    assert first.tolist() == [[4, 8], [15, 0]]
    assert second.tolist() == [[12, 15]]


def test_rounds_keep_every_layer_alive_where_one_shot_does_not() -> None:
    with seeded(0, "wide"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 200, bias=False), nn.Linear(200, 4, bias=False))
    many = SynFlowPruning(sparsity=0.99, shape=(4,)).masks(model, seed=0)
    assert all(m.any() for m in many.values())
    kept = sum(int(m.sum()) for m in many.values())
    assert kept == sum(m.numel() for m in many.values()) - round(0.99 * sum(m.numel() for m in many.values()))
    ones = torch.ones(1, 4)
    with torch.no_grad():
        for layer, mask in zip(model, many.values(), strict=True):
            layer.weight.copy_(layer.weight.abs() * mask)
    assert float(model(ones).detach().sum()) > 0


def test_rounds_are_nested_and_the_model_is_left_alone() -> None:
    with seeded(0, "resnet"):
        model = ResNet((1, 8, 8), 4, 4, (1, 1)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, large = (SynFlowPruning(sparsity=s, shape=(1, 8, 8), rounds=20).masks(model, seed=0) for s in (0.9, 0.5))
    assert sum(int(m.sum()) for m in small.values()) < sum(int(m.sum()) for m in large.values())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_bad_input() -> None:
    with pytest.raises(InputError, match="rounds"):
        SynFlowPruning(rounds=0)
    with pytest.raises(InputError, match="shape"):
        SynFlowPruning().compress(MLP(), None, seed=0)
