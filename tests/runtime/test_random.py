from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.runtime.random import Draws, derive, philox, seeded


def test_philox_matches_the_known_answers_of_random123() -> None:
    zero = philox(torch.zeros(4, dtype=torch.int64), (0, 0))
    assert [f"{v:08x}" for v in zero.tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = philox(torch.full((4,), 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF))
    assert [f"{v:08x}" for v in ones.tolist()] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=2, max_size=20, unique=True))
def test_a_sample_draws_the_same_numbers_in_any_batch(seed: int, index: list[int]) -> None:
    together = Draws(seed, "s", torch.tensor(index))
    alone = [Draws(seed, "s", torch.tensor([i])) for i in index]
    for shape in ((3,), (2, 5)):
        assert together.normal(*shape).equal(torch.cat([a.normal(*shape) for a in alone]))
    assert together.uniform(7).equal(torch.cat([a.uniform(7) for a in alone]))


def test_draws_follow_their_distributions() -> None:
    draws = Draws(1, "s", torch.arange(200))
    assert stats.kstest(draws.uniform(100).flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(draws.normal(101).flatten().numpy(), "norm").pvalue > 1e-3
    counts = np.bincount(draws.integers(7, 100).flatten().numpy(), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(float(draws.signs(100).mean())) < 0.05


def test_streams_and_seeds_are_independent() -> None:
    index = torch.arange(2000)
    a, b, c = (Draws(s, n, index).normal(1).flatten() for s, n in ((0, "a"), (0, "b"), (1, "a")))
    for x, y in ((a, b), (a, c), (b, c)):
        assert abs(float(torch.corrcoef(torch.stack((x, y)))[0, 1])) < 0.08
    assert derive(0, "a", "b") != derive(0, "ab") != derive(1, "a", "b")


def test_select_continues_the_streams() -> None:
    whole = Draws(3, "s", torch.arange(6))
    whole.normal(4)
    part = whole.select(torch.tensor([1, 4]))
    assert part.uniform(3).equal(whole.uniform(3)[[1, 4]])


def test_seeded_restores_the_global_state() -> None:
    before = torch.get_rng_state()
    with seeded(0, "x"):
        first = torch.rand(3)
    with seeded(0, "x"):
        assert torch.rand(3).equal(first)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("high", [1, 2, 1000])
def test_integers_stay_below_high(high: int) -> None:
    values = Draws(0, "i", torch.arange(500)).integers(high, 3)
    assert 0 <= int(values.min()) <= int(values.max()) < high
