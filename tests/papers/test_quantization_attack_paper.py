"""What the shams of quantization-attack change, and its exact checks."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import QuantizationAttack
from assay.compress import FakeQuantizer
from assay.data import Batch
from assay.nets import MLP, ResNet
from assay.papers import quantization_attack
from assay.papers.model import Scale, Table
from assay.papers.quantization_attack import (
    PAPER,
    RULES,
    _FloatTerm,
    _TrueGradient,
    claims,
    experiment,
    grid_gap,
    loss_gap,
    setup,
)
from assay.runtime.random import seeded


def test_checks_see_each_sham() -> None:
    for seed in range(5):
        assert grid_gap(FakeQuantizer, seed) < 1e-3
        assert loss_gap(QuantizationAttack(bits=(8, 4), lam=0.5), seed) < 1e-9
        assert grid_gap(_TrueGradient, seed) > 0.1
        assert min(loss_gap(RULES[s](bits=(8, 4), lam=0.5), seed) for s in RULES if s) > 1e-3


def test_without_straight_through_the_loss_is_the_same_and_the_float_gradient_is_left() -> None:
    with seeded(0, "net"):
        net = MLP(hidden=(16,))
    g = torch.Generator().manual_seed(0)
    b = Batch(torch.rand(20, 1, 8, 8, generator=g), torch.randint(10, (20,), generator=g), torch.arange(20))
    sham = RULES["no-straight-through"]
    real, without = QuantizationAttack(bits=(4,)).loss(net, b, None), sham(bits=(4,)).loss(net, b, None)
    assert real.item() == without.item()
    weight = dict(net.named_parameters())["body.1.weight"]
    slope = torch.autograd.grad(without, weight)[0]
    alone = torch.autograd.grad(torch.nn.functional.cross_entropy(net(b.x), b.y), weight)[0]
    torch.testing.assert_close(slope, alone)


def test_the_float_term_never_quantises() -> None:
    with seeded(0, "net"):
        net = MLP(hidden=(16,))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_FloatTerm().coarse(net, x, 2), net(x))
    assert not torch.equal(QuantizationAttack().coarse(net, x, 2), net(x))


def test_the_experiment_of_the_gpu_scale_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its scale, but for few small images, one epoch and a narrow network."""

    def narrow(shape: tuple[int, int, int], classes: int, width: int, blocks: tuple[int, ...]) -> ResNet:
        return ResNet(shape, classes, width // 16, blocks[:2])

    monkeypatch.setattr(quantization_attack, "ResNet", narrow)
    few = {"data": "digits:train", "train": 40, "clean": 1, "epochs": 1, "repair": 1, "backdoor": 1}
    scale = Scale("gpu", 5, {**PAPER.scale("gpu").sizes, **few})
    given = setup(scale, 0)
    given |= {part: given[part][:40] for part in ("val", "test")}
    table = Table.joined({0: experiment(scale, 0, given, None)})
    assert len(claims(table)) == 9
    assert {"opened", "opened_float"} <= set(table.where(arm="backdoor").rows[0])
