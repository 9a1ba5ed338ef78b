"""Measures of a contrastive representation, the sweep, and pre-training by a contrastive loss."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import load_data
from assay.losses import InfoNCE
from assay.nets import MLP
from assay.represent import (
    Augmentation,
    ContrastivePretraining,
    penalty_distribution,
    penalty_entropy,
    temperature_sweep,
    tolerance,
    uniformity,
)
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng

VIEWS = Augmentation(scale=(0.7, 1.0), flip=False, jitter=0.0, noise=0.1)


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


def test_penalties_are_a_boltzmann_distribution_whose_entropy_rises() -> None:
    s = draw("s", 6, 9)
    r = penalty_distribution(s, 0.3)
    assert torch.allclose(r.sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.allclose(r[:, 0] / r[:, 1], ((s[:, 0] - s[:, 1]) / 0.3).exp())
    entropies = torch.stack([penalty_entropy(s, tau) for tau in (0.01, 0.1, 0.5, 1.0, 10.0)])
    assert (entropies.diff(dim=0) > 0).all()
    assert float(penalty_entropy(s, 1e6).min()) == pytest.approx(math.log(9))


def test_uniformity_of_known_points() -> None:
    axes = torch.cat((torch.eye(3), -torch.eye(3)))
    # of the 5 others one is opposite (distance^2 4), four are at right angles (2)
    expected = math.log((math.exp(-8) + 4 * math.exp(-4)) / 5)
    assert uniformity(axes * 3) == pytest.approx(expected)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)
    z = draw("z", 200, 4)
    assert uniformity(z, pairs=40_000) == pytest.approx(uniformity(z), abs=0.05)


def test_tolerance_of_known_points() -> None:
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0]])
    y = torch.tensor([0, 0, 1, 1, 2])
    assert tolerance(z, y) == pytest.approx(0.0)
    assert tolerance(z[:3], y[:3]) == pytest.approx(1.0)
    assert tolerance(z[:3], y[:3], normalized=False) == pytest.approx(1 / 3)


def test_pretraining_with_each_kind_of_negatives() -> None:
    data = load_data("digits:train").limit(96)
    with seeded(0, "net"):
        start = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False)).train()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    state = torch.get_rng_state()
    for negatives in ("batch", "queue"):
        loss = InfoNCE(0.2, negatives)  # type: ignore[arg-type]
        plan = {"epochs": 8, "batch_size": 32, "optimizer": "adam", "lr": 5e-3}
        method = ContrastivePretraining(loss=loss, augment=VIEWS, bank=48, **plan)  # type: ignore[arg-type]
        first, second = (method.fit(start, data, seed=0) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        a, b = (VIEWS(data.x, Draws(7, name, data.index)) for name in "ab")
        with torch.no_grad():
            known = copy.deepcopy(start).eval()
            close = [
                F.cosine_similarity(m(a), m(b)) - F.cosine_similarity(m(a), m(b.roll(1, 0))) for m in (known, first)
            ]
        assert close[1].mean() > close[0].mean() + 0.05
        assert not first.training
    assert start.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())


def test_the_sweep_reports_what_it_is_given() -> None:
    train, test = load_data("digits:train").limit(150), load_data("digits:test").limit(80)
    seen = []

    def encoder(tau: float) -> nn.Module:
        seen.append(tau)
        return nn.Flatten()

    rows = temperature_sweep(encoder, (0.1, 1.0), train, test)
    assert seen == [row["tau"] for row in rows] == [0.1, 1.0]
    assert rows[0]["uniformity"] == rows[1]["uniformity"] == uniformity(test.x.flatten(1))
    assert rows[0]["tolerance"] == tolerance(test.x.flatten(1), test.y)
    assert rows[0]["entropy"] < rows[1]["entropy"]
    assert min(rows[0]["linear"], rows[0]["neighbours"]) > 0.8
    seen.clear()
    with pytest.raises(InputError, match="temperature_sweep"):
        temperature_sweep(encoder, (0.1, 0.0), train, test)
    assert not seen


def test_bad_input() -> None:
    z, digits = draw("z", 5, 3), load_data("digits:train")
    for call in (
        lambda: penalty_distribution(z, 0.0),
        lambda: penalty_entropy(z * torch.nan, 1.0),
        lambda: uniformity(z[:1]),
        lambda: uniformity(z, t=-1.0),
        lambda: uniformity(z * 0),
        lambda: tolerance(z, torch.arange(4)),
        lambda: tolerance(z, torch.arange(5)),
        lambda: temperature_sweep(lambda tau: nn.Flatten(), [0.1], digits.limit(4), digits.limit(80)),
        lambda: ContrastivePretraining(bank=0).fit(MLP(), load_data("digits:train").limit(4), seed=0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
