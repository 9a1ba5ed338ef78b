"""DivideMix: how it divides, what it makes targets of, and its loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.labels import DivideMix, MixMatch
from assay.labels.divide_mix import clean_probability
from assay.methods import from_text
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State, Supervised


def _data(n: int = 30) -> Data:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 4, generator=g), torch.randint(3, (n,), generator=g)
    return Data(x, y, ("a", "b", "c"), index=3 * torch.arange(n) + 1)


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g)


def test_small_losses_are_clean() -> None:
    g = torch.Generator().manual_seed(0)
    losses = torch.cat((0.1 * torch.rand(80, generator=g), 3 + torch.rand(40, generator=g)))
    w = clean_probability(losses, seed=0)
    assert (w[:80] > 0.99).all()
    assert (w[80:] < 0.01).all()
    assert torch.equal(w, clean_probability(losses, seed=0))
    assert torch.equal(clean_probability(torch.ones(5), seed=0), torch.ones(5))


def test_targets_are_refined_or_guessed_and_sharpened() -> None:
    own, both = torch.tensor([[0.5, 0.3, 0.2]]).repeat(2, 1), torch.tensor([[0.2, 0.2, 0.6]]).repeat(2, 1)
    found = DivideMix().targets(torch.tensor([0, 0]), own, both, torch.tensor([0.8, 0.4]))
    refined, guessed = torch.tensor([0.9, 0.06, 0.04]) ** 2, torch.tensor([0.2, 0.2, 0.6]) ** 2
    assert torch.allclose(found, torch.stack((refined / refined.sum(), guessed / guessed.sum())))


def test_loss_is_its_three_terms() -> None:
    g = torch.Generator().manual_seed(2)
    logits, target = torch.randn(7, 4, generator=g).double(), torch.randn(7, 4, generator=g).double().softmax(1)
    clean = torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()
    p = logits.softmax(1)
    known = F.cross_entropy(logits[clean], target[clean])
    guessed = F.mse_loss(p[~clean], target[~clean])
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    balance = (uniform * (uniform / p.mean(0)).log()).sum()
    method = DivideMix()
    assert torch.allclose(method.loss(logits, target, clean, 25.0), known + 25 * guessed + balance)
    same = torch.zeros(3, 4, dtype=torch.float64)
    assert float(method.loss(same, same.softmax(1), torch.zeros(3).bool(), 1.0)) == pytest.approx(0, abs=1e-12)
    assert [method.weight(e) for e in (9, 10, 18, 26, 99)] == [0, 0, 12.5, 25, 25]


def test_sure_networks_and_low_temperatures_are_finite() -> None:
    sure = torch.tensor([[300.0, 0.0], [300.0, 0.0]])
    found = DivideMix().loss(sure, torch.tensor([[1.0, 0.0]] * 2), torch.ones(2), 0.0)
    assert float(found) == pytest.approx(150 - math.log(2))
    p = torch.cat((torch.full((1, 1000), 1e-3), F.one_hot(torch.tensor([3]), 1000), torch.rand(1, 1000).softmax(1)))
    for temperature in (0.5, 0.1, 0.01, 1e-3):
        expected = (p.double().log() / temperature).softmax(1).float()
        found = DivideMix(temperature=temperature).targets(torch.zeros(3).long(), p, p, torch.zeros(3))
        assert torch.allclose(found, expected, rtol=1e-2, atol=1e-6)
        assert torch.allclose(MixMatch(temperature=temperature).guess(p.log()[None]), found, rtol=1e-2, atol=1e-6)


def test_each_network_is_told_by_the_other_once_an_epoch() -> None:
    data, pair, method = _data(), _Pair(), DivideMix(warm=0)
    state = State(4, data, 9)
    nets = list(pair.children())
    w = method.divided(nets, state)
    losses = F.cross_entropy(pair.second(data.x), data.y, reduction="none").detach()
    assert (w[0][losses.argsort()].diff() <= 1e-4).float().mean() > 0.8
    pair.second.weight.data.mul_(-1)
    assert torch.equal(method.divided(nets, state), w)
    state.epoch = 1
    assert not torch.equal(method.divided(nets, state)[0], w[0])
    batch = data.batch(torch.arange(10))
    assert torch.isfinite(method.objective(pair, batch, state))


def test_before_it_divides_it_is_plain_training_of_both() -> None:
    data, pair = _data(), _Pair()
    batch = data.batch(torch.arange(10))
    expected = sum(F.cross_entropy(net(batch.x), batch.y) for net in pair.children())
    assert torch.allclose(DivideMix(warm=3).objective(pair, batch, State(0, data, 9, epoch=2)), expected)
    assert from_text("labels.DivideMix:warm=2,epochs=3").plain() == Supervised(epochs=3)


def test_it_learns_through_its_phases() -> None:
    g = torch.Generator().manual_seed(3)
    y = torch.randint(3, (300,), generator=g)
    x = (torch.eye(3)[y] * 0.5 + 0.5 * torch.rand(300, 3, generator=g)).clamp(0, 1)
    noisy = torch.where(torch.rand(300, generator=g) < 0.3, torch.randint(3, (300,), generator=g), y)
    with seeded(0, "net"):
        net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    found = DivideMix(warm=15, ramp=5, epochs=30, lr=2e-2).fit(net, Data(x, noisy, ("a", "b", "c")), seed=0)
    assert float((found(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize(
    "bad", [{"warm": -1}, {"ramp": 0}, {"threshold": 1.0}, {"temperature": 0.0}, {"alpha": 0.0}, {"doubtful": -1.0}]
)
def test_bad_parameters(bad: dict) -> None:
    with pytest.raises(InputError, match="expected"):
        DivideMix(**bad)
