"""ELR+: one step by hand, the weight averages, resuming, and what is refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.labels import ELRPlus
from assay.labels.elr import rampup
from assay.labels.elr_plus import MeanLogits
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.spec import build, spec_of
from assay.training import State


def _data(n: int = 12, c: int = 4) -> Data:
    g = torch.Generator().manual_seed(0)
    return Data(torch.rand(n, 5, generator=g), torch.randint(c, (n,), generator=g), tuple("abcd"[:c]))


def _nets() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {"first": nn.Linear(5, 4), "second": nn.Linear(5, 4)}


def _blend(share: float, a: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    return share * a + (1 - share) * a[partner]


@pytest.mark.parametrize("sharpen", [False, True])
def test_losses_of_two_steps_by_hand(sharpen: bool) -> None:
    data, models = _data(), _nets()
    method = ELRPlus(beta=0.6, strength=2.0, strength_steps=7, sharpen=sharpen)
    state, table = State(3, data, 9), torch.zeros(12, 4)
    for rows in (torch.arange(8), torch.arange(4, 12)):
        batch = data.batch(rows)
        loss = method.loss("first", models, batch, state)
        table[rows] = 0.6 * table[rows] + 0.4 * models["second"](batch.x).detach().softmax(1)
        share, partner = method.mixed("first", len(rows), state)
        logits = models["first"](_blend(share, batch.x, partner))
        target, y = (_blend(share, t, partner) for t in (table[rows], F.one_hot(batch.y, 4).float()))
        if sharpen:
            y = y * target / (y * target).sum(1, keepdim=True)
        term = (1 - (target * logits.softmax(1)).sum(1)).log().mean()
        expected = -(y * logits.log_softmax(1)).sum(1).mean() + 2 * rampup(state.step + 1, 7) * term
        assert 0.5 <= share <= 1
        torch.testing.assert_close(loss, expected)
        state.step += 1


def test_networks_mix_differently_and_the_same_again() -> None:
    state, method = State(0, _data(), 9), ELRPlus()
    one, two = method.mixed("first", 12, state), method.mixed("second", 12, state)
    assert one[0] == method.mixed("first", 12, state)[0]
    assert one[0] != two[0]
    assert not torch.equal(one[1], two[1])


def test_rampup() -> None:
    assert rampup(5, 0) == rampup(10, 10) == rampup(11, 10) == 1
    assert rampup(0, 10) == pytest.approx(math.exp(-5))
    assert rampup(5, 10) == pytest.approx(math.exp(-1.25))


def test_weight_averages_start_at_the_weights_and_follow_them() -> None:
    data, models = _data(), _nets()
    state, method = State(0, data, 9), ELRPlus(average=0.5, average_steps=4)
    expected = copy.deepcopy(models["first"].weight.detach())
    method.targets("second", models, data.batch(torch.arange(12)), state)
    for step in (1, 2):
        with torch.no_grad():
            models["first"].weight += 1
        state.step = step
        method.follow(models, state)
        decay = 0.5 * rampup(step + 1, 4)
        expected = decay * expected + (1 - decay) * models["first"].weight.detach()
    torch.testing.assert_close(state.memory["elr+/average/first/weight"], expected)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


def test_tied_weights_have_one_average() -> None:
    torch.manual_seed(0)
    models = {"first": _Tied(), "second": _Tied()}
    state, method = State(0, _data(), 9), ELRPlus(average=0.9, average_steps=0)
    start = models["second"].a.weight.detach().clone()
    batch = _data().batch(torch.arange(6))
    method.loss("first", models, batch, state)
    models["second"].b.weight.data += 1
    method.follow(models, state)
    averaged = copy.deepcopy(models["second"])
    averaged.a.weight.data = start + 0.1
    found = method.targets(
        "first",
        models,
        batch,
        State(0, _data(), 9, memory=state.memory | {"elr+/first": 0 * state.memory["elr+/first"]}),
    )
    torch.testing.assert_close(found, 0.3 * averaged(batch.x).softmax(1).detach())
    assert ELRPlus(epochs=1).fit(_Tied(), _data(), seed=0)(batch.x).shape == (6, 4)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path) -> None:
    method, data = ELRPlus(epochs=3, batch_size=4), _data()

    def stop(models, state) -> None:
        if state.step == 7:
            raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        method.fit(_start(), data, seed=0, checkpoint=path, hooks=[stop])
    again = method.fit(_start(), data, seed=0, checkpoint=path)
    reference = method.fit(_start(), data, seed=0)
    for a, b in zip(again.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def _start() -> nn.Module:
    torch.manual_seed(2)
    return MLP((5,), 4, (8,))


def test_mean_of_logits_is_rebuilt_from_its_spec() -> None:
    pair = MeanLogits(_start(), MLP((5,), 4, (8,)))
    x = _data().x
    torch.testing.assert_close(pair(x), (pair.first(x) + pair.second(x)) / 2)
    other = build(spec_of(pair).to_dict())
    other.load_state_dict(pair.state_dict())
    assert torch.equal(other(x), pair(x))


@pytest.mark.parametrize("bad", [{"mixup": 0.0}, {"average": 1.0}, {"average_steps": -1}, {"beta": 1.0}])
def test_bad_parameters(bad: dict) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ELRPlus(**bad)
