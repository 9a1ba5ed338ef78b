"""Data-free universal perturbations: objectives against their formulas, stages, the halving, the optimum."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.attacks import GDUAP, FastFeatureFool, Perturbation, fooling_rate, generalized_fooling_rate
from assay.attacks.conv_stages import ConvStages
from assay.attacks.universal import augmented
from assay.nets import MLP, ResNet, SmallCNN
from assay.papers.gd_uap import best_move, best_signs
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


def cnn():
    with seeded(0, "init"):
        return SmallCNN((1, 8, 8), 10, (4, 6), 16).double().eval()


def test_objectives_are_their_formulas():
    model = cnn().requires_grad_(False)
    x = torch.rand(3, 1, 8, 8, generator=torch_rng(0, "x"), dtype=torch.float64)
    first = F.relu(F.conv2d(x, model.body[0].weight, model.body[0].bias, padding=1))
    second = F.relu(F.conv2d(first, model.body[2].weight, model.body[2].bias, 2, 1))
    stages = ConvStages(model, x)(x)
    assert [s.equal(e) for s, e in zip(stages, (first, second), strict=True)] == [True, True]
    expected = sum(2 * s.norm().log() - math.log(2) for s in (first, second))
    assert float(GDUAP().objective(stages)) == pytest.approx(float(expected), abs=1e-9)
    expected = sum(s.sum().div(s.numel()).log() for s in (first, second))
    assert float(FastFeatureFool().objective(stages)) == pytest.approx(float(expected), abs=1e-9)


class Everything(nn.Module):
    """Shared and in-place activations, normalisation between, a dict as output, and a layer that must not run."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.norm, self.act, self.pool = nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.ran = 0

    def forward(self, x):
        x = self.pool(self.act(self.norm(self.a(x))))
        x = self.act(self.b(x))
        x = F.relu(self.c(x), inplace=True)
        self.ran += 1
        return {"out": x}


def test_stages_of_any_network():
    with seeded(0, "init"):
        model = Everything().eval()
    x = torch.rand(1, 2, 8, 8, generator=torch_rng(0, "x"))
    stages = ConvStages(model, x)
    assert stages.order == [(model.act, 1), (model.act, 2), (model.c, 1)]
    first, second, third = stages(x)
    assert first.shape == (1, 2, 8, 8)
    assert second.shape == third.shape == (1, 2, 4, 4)
    assert first.min() == 0 == second.min()
    assert third.min() < 0  # the convolution's own output, before the function that works in place
    assert model.ran == 1  # the pass ends at the last stage
    assert ConvStages(model, x, ("pool",)).order == [(model.pool, 1)]
    with seeded(0, "init"):
        assert len(ConvStages(ResNet((1, 8, 8)), x[:, :1]).order) == 9
        with pytest.raises(InputError, match="expected a convolution"):
            ConvStages(MLP((1, 8, 8)), x[:, :1])
        with pytest.raises(InputError, match="did you mean 'pool'"):
            ConvStages(model, x, ("pooll",))


def test_found_signs_are_a_local_optimum():
    weight = np.random.default_rng(0).normal(size=(6, 8))
    with seeded(0, "init"):
        model = nn.Sequential(nn.Conv2d(1, 6, (1, 8), bias=False).double())
    model[0].weight = nn.Parameter(torch.from_numpy(weight).reshape(6, 1, 1, 8))
    attack = GDUAP(eps=0.1, lr=0.01, max_iter=100, check_every=100, sat_rate=0.0)
    found = [attack.fit(model, (1, 1, 8), seed=k).delta_.numpy().ravel() for k in range(4)]
    assert max(best_move(weight, delta, 0.1) for delta in found) < 1e-12
    assert max(np.square(weight @ d).sum() for d in found) == pytest.approx(best_signs(weight, 0.1))
    inside = 0.5 * found[0]
    assert best_move(weight, inside, 0.1) > 1e-5


def test_halving_where_saturation_stands_still():
    attack = GDUAP(eps=0.1, lr=0.02, max_iter=40, check_every=1, patience=100)
    model = cnn()
    with_halving, without = (
        a.fit(model, (1, 8, 8), seed=0) for a in (attack, GDUAP(**{**vars(attack), "sat_rate": 0.0}))
    )
    shares = [p.saturation for p in with_halving.history_]
    assert any(b == 0 < a for a, b in pairwise(shares))
    assert [p.saturation for p in without.history_][-1] > 0.5
    assert with_halving.delta_.abs().max() == pytest.approx(0.1)


def test_the_best_check_counts_and_patience_ends_it():
    model = cnn()
    found = GDUAP(eps=0.1, lr=1e-9, max_iter=500, check_every=5, patience=3).fit(
        model, (1, 8, 8), seed=0, val=torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    )
    assert [p.iteration for p in found.history_] == [5, 10, 15, 20]  # nothing moves, so the first check stays the best


def test_fooling_rates():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(torch.eye(2))
    x = torch.tensor([[[[0.6, 0.5]]], [[[0.9, 0.1]]], [[[0.2, 0.8]]], [[[0.5, 0.45]]]])
    perturb = Perturbation(torch.tensor([[[[0.0, 0.2]]]]), (0.0, 1.0), ())
    assert fooling_rate(model, x, perturb) == 0.5
    clean, moved = model(x).argmax(1), model(perturb(x)).argmax(1)
    assert generalized_fooling_rate(lambda a, b: float((a == b).float().mean()), clean, moved, 1.0) == 0.5
    assert generalized_fooling_rate(lambda a, b: 40.0, clean, moved, 100.0) == pytest.approx(0.6)
    with pytest.raises(InputError, match="metric_range"):
        generalized_fooling_rate(lambda a, b: 0.0, clean, moved, 0.0)


def test_inputs_follow_the_prior():
    blank, g = torch.zeros(1, 2, 16, 16), torch_rng(0, "g")
    assert GDUAP().inputs(blank, None, g).equal(blank)
    assert GDUAP(mean=(0.2, 0.4)).inputs(blank, None, g)[0, :, 3, 5].tolist() == pytest.approx([0.2, 0.4])
    noise = GDUAP(prior="range", mean=(0.5, 0.4), std=(0.1, 0.05), batch_size=50, augment=False).inputs(blank, None, g)
    assert noise.mean((0, 2, 3)).tolist() == pytest.approx([0.5, 0.4], abs=0.005)
    assert noise.std((0, 2, 3)).tolist() == pytest.approx([0.1, 0.05], abs=0.005)
    data = torch.arange(4.0)[:, None, None, None].expand(4, 2, 16, 16) / 4
    drawn = GDUAP(prior="data", batch_size=40).inputs(blank, data, g)
    torch.testing.assert_close(drawn, drawn[:, :1, :1, :1].expand_as(drawn))  # flat images stay flat when augmented
    assert len(drawn[:, 0, 0, 0].mul(4).round().unique()) == 4


def test_augmentation_changes_images_within_their_range():
    x = torch.rand(20, 3, 12, 12, generator=torch_rng(0, "x"))
    out = augmented(x, torch_rng(0, "g"))
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out - x).abs().amax((1, 2, 3)).min() > 0.1
