"""Early-learning regularisation: closed-form gradient, the memory of each sample, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.labels import ELR
from assay.papers.elr import RULES, gradient_gap
from assay.runtime.errors import InputError
from assay.training import State


def _data(n: int = 8, c: int = 4) -> Data:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, c, generator=g), torch.randint(c, (n,), generator=g)
    return Data(x, y, tuple("abcdefgh"[:c]), index=5 * torch.arange(n) + 2)


@pytest.mark.parametrize(("beta", "strength"), [(0.0, 1.0), (0.7, 3.0), (0.9, 7.0)])
def test_gradient_is_the_closed_form(beta: float, strength: float) -> None:
    assert gradient_gap(ELR(beta=beta, strength=strength), 0) < 1e-14


@pytest.mark.parametrize("sham", [s for s in RULES if s])
def test_gradient_of_shams_is_not(sham: str) -> None:
    assert gradient_gap(RULES[sham](), 0) > 1e-3


def test_without_strength_it_is_cross_entropy() -> None:
    data = _data()
    loss = ELR(strength=0.0).objective(nn.Identity(), data.batch(torch.arange(8)), State(0, data, 1))
    assert torch.equal(loss, F.cross_entropy(data.x, data.y))


def test_the_term_may_rise() -> None:
    data, batch = _data(), _data().batch(torch.arange(8))
    for step, length in ((0, 10), (4, 10), (9, 10), (30, 10), (0, 0)):
        state, other = State(0, data, 40, step=step), State(0, data, 40, step=step)
        found = ELR(strength_steps=length).objective(nn.Identity(), batch, state)
        weight = math.exp(-5 * (1 - min((step + 1) / length, 1)) ** 2) if length else 1
        expected = F.cross_entropy(data.x, data.y) + weight * ELR().term(data.x, data.index, other)
        torch.testing.assert_close(found, expected)


def test_targets_start_at_zero_and_belong_to_samples() -> None:
    data = _data()
    state, method = State(0, data, 2), ELR()
    rows = torch.tensor([6, 1])
    first = method.term(data.x[rows], data.index[rows], state)
    p = data.x[rows].softmax(1)
    assert torch.allclose(first, 3 * (1 - 0.3 * (p * p).sum(1)).log().mean())
    assert torch.allclose(state.memory["elr"][rows], 0.3 * p)
    assert state.memory["elr"].count_nonzero(1).bool().sum() == 2
    method.term(data.x[rows.flip(0)], data.index[rows.flip(0)], state)
    assert torch.allclose(state.memory["elr"][rows], (1 - 0.7**2) * p)


def test_confident_logits_stay_finite() -> None:
    data = _data()
    state, method = State(0, data, 50), ELR(beta=0.0)
    logits = torch.eye(4).repeat(2, 1).mul(1e4).requires_grad_()
    loss = method.term(logits, data.index, state)
    assert math.isclose(loss.item(), 3 * math.log(4e-4), rel_tol=0.3)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize(
    "bad", [{"beta": 1.0}, {"beta": -0.1}, {"strength": -1.0}, {"strength": math.inf}, {"strength_steps": -1}]
)
def test_bad_parameters(bad: dict) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ELR(**bad)


def test_bad_data_and_models() -> None:
    data = _data()
    with pytest.raises(InputError, match="names"):
        ELR(epochs=1).fit(nn.Linear(4, 4), replace(data, index=torch.zeros(8, dtype=torch.int64)), seed=0)
    with pytest.raises(InputError, match="logits have shape"):
        ELR(epochs=1).fit(nn.Linear(4, 5), data, seed=0)
