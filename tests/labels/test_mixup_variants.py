"""Mixup with a fixed share, all pairs and labels of their own; Mixup that stops early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.data import Data
from assay.labels import EarlyStoppedMixup, ManifoldMixup, Mixup
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import State, Supervised

TINY = {"epochs": 4, "batch_size": 16, "lr": 0.01}


def _data(n: int = 48) -> Data:
    g = torch.Generator().manual_seed(0)
    return Data(torch.rand(n, 3, 2, 2, generator=g), torch.arange(n) % 3, ("0", "1", "2"))


def _net() -> nn.Module:
    with seeded(1, "net"):
        return MLP((3, 2, 2), 3, (8,))


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_share_of_one_is_plain_training_bit_for_bit() -> None:
    data, net = _data(), _net()
    plain = Supervised(**TINY).fit(net, data, seed=4)
    assert _same(Mixup(fixed_lambda=1.0, **TINY).fit(net, data, seed=4), plain)
    assert not _same(Mixup(fixed_lambda=0.6, **TINY).fit(net, data, seed=4), plain)


def test_all_pairs_are_the_mean_over_cyclic_shifts() -> None:
    data, net = _data(7), _net().double()
    batch = replace(data.batch(torch.arange(7)), x=data.x.double())
    shifts = []
    for k in range(7):
        logits = net(0.7 * batch.x + 0.3 * batch.x.roll(k, 0))
        target = 0.7 * F.one_hot(batch.y, 3).double() + 0.3 * F.one_hot(batch.y.roll(k), 3).double()
        shifts.append(F.cross_entropy(logits, target).detach())
    found = Mixup(fixed_lambda=0.7, pairs="all").objective(net, batch, State(5, data, 9))
    assert abs(float(found.detach() - torch.stack(shifts).mean())) < 1e-12


def test_a_permutation_is_all_pairs_in_the_mean() -> None:
    data, net = _data(12), _net()
    batch, method = data.batch(torch.arange(12)), Mixup(fixed_lambda=0.7)
    with torch.no_grad():
        every = float(replace(method, pairs="all").objective(net, batch, State(5, data, 9)))
        drawn = torch.stack([method.objective(net, batch, State(5, data, 9, step=k)) for k in range(400)])
    assert abs(float(drawn.mean()) - every) < 4 * float(drawn.std()) / 20


def test_labels_have_the_share_that_the_map_gives() -> None:
    data, net = _data(), _net()
    batch, state = data.batch(torch.arange(16)), State(5, data, 9, step=2)
    method = Mixup(label_map=lambda share: 0.75 if share >= 0.5 else 0.25)
    share, (_, partner) = method.share(state), method.partners(batch, state)
    label = 0.75 if share >= 0.5 else 0.25
    one_hot = F.one_hot(batch.y, 3).float()
    logits = net(share * batch.x + (1 - share) * batch.x[partner])
    expected = F.cross_entropy(logits, label * one_hot + (1 - label) * one_hot[partner])
    assert torch.allclose(method.objective(net, batch, state), expected, atol=1e-6)
    with pytest.raises(InputError, match="label_map"):
        Mixup(label_map=lambda share: 2.0).objective(net, batch, state)


def test_independent_labels_keep_the_larger_share_with_the_same_sample() -> None:
    data, method = _data(), Mixup(label_map="independent")
    states = [State(5, data, 999, step=k) for k in range(400)]
    shares = torch.tensor([(s := method.share(state), method.label_share(s, state)) for state in states])
    assert torch.equal(shares[:, 0] >= 0.5, shares[:, 1] >= 0.5)
    assert (shares[:, 0] - shares[:, 1]).abs().min() > 0
    folded = torch.maximum(shares, 1 - shares)  # uniform on [1/2, 1], and independent of one another
    assert (folded.mean(0) - 0.75).abs().max() < 0.03
    assert torch.corrcoef(folded.T)[0, 1].abs() < 0.15


def test_early_stopping_is_mixup_and_then_plain_training() -> None:
    data, net = _data(), _net()
    plan = {**TINY, "optimizer": "sgd", "momentum": 0.9}
    assert _same(EarlyStoppedMixup(stop=1.0, **plan).fit(net, data, seed=4), Mixup(**plan).fit(net, data, seed=4))
    assert _same(EarlyStoppedMixup(stop=0.0, **plan).fit(net, data, seed=4), Supervised(**plan).fit(net, data, seed=4))
    traces: list[list[torch.Tensor]] = []
    for method in (EarlyStoppedMixup(**plan), Mixup(**plan)):
        trace: list[torch.Tensor] = []
        hook = lambda models, _state, trace=trace: trace.append(models["model"].head.weight.detach().clone())  # noqa: E731
        method.fit(net, data, seed=4, hooks=[hook])
        traces.append(trace)
    equal = [torch.equal(a, b) for a, b in zip(*traces, strict=True)]
    assert equal == [True] * 6 + [False] * 6


class _Shared(nn.Module):
    """One linear layer called twice, or a layer of attention."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 1, batch_first=True) if attention else nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.inner, nn.MultiheadAttention):
            tokens = x[:, None]
            return self.head(self.inner(tokens, tokens, tokens)[0][:, 0])
        return self.head(self.inner(self.inner(x)))


@pytest.mark.parametrize("pairs", ["permutation", "all"])
def test_hidden_states_are_mixed_once(pairs: str) -> None:
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    data, method = Data(x, torch.arange(6) % 3, ("0", "1", "2")), ManifoldMixup(layers=("inner",), pairs=pairs)
    batch, state = data.batch(torch.arange(6)), State(0, data, 9)
    with seeded(0, "net"):
        net = _Shared(attention=False)
    logits, *_ = method.mixed_logits(net, batch, state)
    first, second = method.partners(batch, state)
    share = method.share(state)
    torch.testing.assert_close(logits, net(share * x[first] + (1 - share) * x[second]))


def test_layers_that_are_not_called_are_not_mixed() -> None:
    data, net = Data(torch.rand(6, 4), torch.arange(6) % 3, ("0", "1", "2")), _Shared(attention=True)
    batch, state = data.batch(torch.arange(6)), State(0, data, 9)
    assert ManifoldMixup().eligible(net) == [net]
    with pytest.raises(InputError, match=r"'inner\.out_proj'"):
        ManifoldMixup(layers=("inner.out_proj",)).mixed_logits(net, batch, state)


@pytest.mark.parametrize("bad", [{"fixed_lambda": 1.5}, {"pairs": "some"}, {"label_map": 0.5}, {"alpha": 0.0}])
def test_bad_options(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="Mixup"):
        Mixup(**bad)
    with pytest.raises(InputError, match="stop"):
        EarlyStoppedMixup(stop=1.2)
