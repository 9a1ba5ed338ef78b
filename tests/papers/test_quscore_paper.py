"""What is special to the quscore paper: its checks on linear fitness, and what its shams keep."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import MicrobialGA
from assay.papers import quscore as paper
from assay.runtime.random import Draws


@pytest.mark.parametrize("seed", range(2))
def test_linear_fitness(seed: int) -> None:
    found, coin = paper.linear(seed), paper.linear(seed, "random-winner")
    assert found["drop"] == 0
    assert found["touched"] == 0
    assert found["share"] > 0.9
    assert coin["drop"] > 1
    assert coin["touched"] > 50
    assert coin["share"] < 0.65
    for row in (found, coin):
        assert row["together"] == 1
        assert row["uncounted"] == 0


def test_the_coin_is_fair_and_blind() -> None:
    draws = Draws(0, "coin", torch.arange(4000))
    high, low = torch.ones(4000), torch.zeros(4000)
    assert 0.46 < paper._Coin().first_wins(high, low, draws).double().mean() < 0.54
    assert MicrobialGA().first_wins(high, low, draws).all()


def test_permuted_individuals_keep_their_bits() -> None:
    delta = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    real, other = paper.QuScore().encode(delta), paper._Permuted().encode(delta)
    assert not real.equal(other)
    assert real.sum(2).equal(other.sum(2))
