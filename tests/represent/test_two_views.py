"""Pre-training on two views: losses against other implementations, and what every method's training does."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import load_data
from assay.represent import BYOL, Augmentation, MoCo, SimCLR, VICReg, byol_loss, vicreg_loss
from assay.represent.two_views import Followed, TwoViews, follow, head
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng
from assay.training import State

VIEWS = Augmentation(scale=(0.8, 1.0), flip=False)
SHORT: dict[str, Any] = {"augment": VIEWS, "batch_size": 64, "optimizer": "adam", "lr": 2e-3, "projector": (32, 16)}
METHODS: list[TwoViews] = [
    SimCLR(**SHORT),
    MoCo(**SHORT, queue=128, momentum=0.9),
    BYOL(**SHORT, hidden=32, momentum=0.9),
    VICReg(**SHORT),
]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


def backbone() -> nn.Module:
    with seeded(0, "net"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU())


def spread(z: Tensor) -> float:
    """Mean standard deviation of the dimensions of unit embeddings: 1 / sqrt(d) where even, 0 where collapsed."""
    return float(F.normalize(z, dim=1).std(0).mean()) * z.shape[1] ** 0.5


@methods
def test_training_brings_views_together_without_collapse(method: TwoViews) -> None:
    data, net = load_data("digits:train").limit(400), backbone()
    before = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    trained = method.__class__(**{**vars(method), "epochs": 6}).fit(net, data, seed=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not trained.training
    one, two = (VIEWS(data.x, Draws(5, name, data.index)) for name in "ab")
    with torch.no_grad():
        agreement = [float(F.cosine_similarity(f(one), f(two)).mean()) for f in (net, trained.backbone)]
        assert trained(data.x).shape == (400, 16)
        assert spread(trained(data.x)) > 0.2
        assert agreement[1] > 0.5


@methods
def test_the_seed_decides(method: TwoViews) -> None:
    data = load_data("digits:train").limit(64)
    short = method.__class__(**{**vars(method), "steps": 2})
    first, again, other = (short.fit(backbone(), data, seed=k).state_dict() for k in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@methods
def test_bad_input(method: TwoViews) -> None:
    data = load_data("digits:train").limit(8)
    with pytest.raises(InputError, match="at least 2"):
        method.fit(backbone(), data[:1], seed=0)
    with pytest.raises(InputError, match="widths >= 1"):
        method.__class__(**{**vars(method), "projector": (0,)}).fit(backbone(), data, seed=0)


@methods
def test_single_images_a_batch_and_features_that_are_no_rows_are_refused(method: TwoViews) -> None:
    data = load_data("digits:train").limit(8)
    with pytest.raises(InputError, match="batches of 2"):
        method.__class__(**{**vars(method), "batch_size": 1}).fit(backbone(), data, seed=0)
    with pytest.raises(InputError, match=r"expected \(1, w\)"):
        method.fit(nn.Conv2d(1, 2, 3), data, seed=0)


@methods
def test_the_loss_can_be_on_the_features_of_a_backbone_without_linear_layers(method: TwoViews) -> None:
    data = load_data("digits:train").limit(8)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trained = method.__class__(**{**vars(method), "projector": (), "steps": 1}).fit(net, data, seed=0)
    assert trained(data.x).shape == (8, 3)


@methods
def test_double_precision_stays(method: TwoViews) -> None:
    data = load_data("digits:train").limit(8)
    double = replace(data, x=data.x.double())
    trained = method.__class__(**{**vars(method), "steps": 1}).fit(backbone().double(), double, seed=0)
    assert trained(double.x).dtype == torch.float64


def test_simclr_is_cross_entropy_over_all_other_views() -> None:
    z = draw("z", 12, 5)
    unit = F.normalize(z, dim=1)
    scores = (unit @ unit.T / 0.3).fill_diagonal_(-float("inf"))
    expected = F.cross_entropy(scores, (torch.arange(12) + 6) % 12)
    found = SimCLR(temperature=0.3).loss(nn.Identity(), z[:6], z[6:], _state())
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


def _state() -> State:
    return State(0, load_data("digits:train").limit(2), 4)


def test_moco_keeps_the_latest_keys_first_in_first_out() -> None:
    method, state = MoCo(projector=(), queue=10, temperature=0.2), _state()
    model = method.network(_Encoder(), torch.zeros(1, 3))
    batches = [(draw(f"q{k}", 4, 3), draw(f"k{k}", 4, 3)) for k in range(3)]
    with seeded(0, "queue"):
        for query, key in batches:
            before = state.memory.get("queue")
            loss = method.loss(model, query, key, state)
            if before is not None:
                q, k = F.normalize(query, dim=1), F.normalize(key, dim=1)
                logits = torch.cat(((q * k).sum(1, keepdim=True), q @ before.T), 1) / 0.2
                expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
                assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    keys = [F.normalize(k, dim=1) for _, k in reversed(batches)]
    assert torch.equal(state.memory["queue"], torch.cat(keys)[:10])


class _Encoder(nn.Module):
    """The identity, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_the_target_follows_and_takes_no_gradient() -> None:
    model = Followed(_Encoder(), nn.Identity())  # type: ignore[arg-type]
    with torch.no_grad():
        model.encoder.weight.fill_(3.0)
    follow(model, 0.75)
    assert float(model.target.weight) == pytest.approx(1.5)
    assert not model.target.weight.requires_grad
    assert BYOL(momentum=0.9).momentum_at(0, 10) == pytest.approx(0.9)
    assert BYOL(momentum=0.9).momentum_at(5, 10) == pytest.approx(0.95)
    assert BYOL(momentum=0.9).momentum_at(10, 10) == 1.0


def test_byol_is_the_squared_distance_of_unit_vectors() -> None:
    q, z = draw("q", 7, 4).requires_grad_(), draw("z", 7, 4).requires_grad_()
    expected = (F.normalize(q, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()
    loss = byol_loss(q, z)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    loss.backward()
    assert z.grad is None


def test_vicreg_against_numpy_and_its_minimum() -> None:
    a, b = draw("a", 30, 4) * 0.5, draw("b", 30, 4) * 0.8
    expected = 25 * float((a - b).square().mean())
    for z in (a.numpy(), b.numpy()):
        cov = np.cov(z.T)
        expected += 25 * np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()
        expected += (np.square(cov).sum() - np.square(cov.diagonal()).sum()) / 4
    assert float(vicreg_loss(a, b)) == pytest.approx(expected, abs=1e-10)
    q = torch.linalg.qr(draw("q", 64, 5) - draw("q", 64, 5).mean(0))[0]
    z = (q - q.mean(0)) * 64
    assert float(vicreg_loss(z, z)) < 0.5
    with pytest.raises(InputError, match="same"):
        vicreg_loss(a, b[:3])


def test_heads() -> None:
    kinds = [type(m).__name__ for m in head((8, 6, 4))]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(m).__name__ for m in head((8, 6, 4), norm=False)] == ["Linear", "ReLU", "Linear"]
    assert len(head((8,))) == 0
    assert head((8, 3))[0].out_features == 3


def test_options_are_checked() -> None:
    for wrong in (lambda: MoCo(queue=0), lambda: MoCo(momentum=2), lambda: BYOL(hidden=0), lambda: BYOL(momentum=-1)):
        with pytest.raises(InputError, match="expected"):
            wrong()
