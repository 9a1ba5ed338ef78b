"""The one-run audit against the inverted binomial tail, and against mechanisms whose epsilon is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from assay.data import Data
from assay.privacy import OneRunAudit
from assay.runtime.errors import InputError

counts = st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 40)).map(
    lambda t: (max(t[0], t[1]) + t[2], max(t[0], t[1]), t[1])
)


@settings(max_examples=20)
@given(counts, st.sampled_from([0.5, 0.9, 0.99]))
def test_without_delta_it_inverts_the_binomial_tail(case: tuple[int, int, int], confidence: float) -> None:
    m, r, v = case
    share = stats.beta.ppf(1 - confidence, v, r - v + 1) if v else 0.0  # Clopper & Pearson's one-sided lower bound
    expected = max(math.log(share / (1 - share)), 0.0) if share > 0 else 0.0
    found = OneRunAudit(delta=0.0, confidence=confidence).epsilon(canaries=m, guesses=r, right=v)
    assert found == pytest.approx(expected, abs=1e-9)


def test_all_right_is_bounded_as_the_docstring_says() -> None:
    q = 0.05 ** (1 / 100)
    found = OneRunAudit(delta=0.0).epsilon(canaries=100, guesses=100, right=100)
    assert found == pytest.approx(math.log(q / (1 - q)))


@settings(max_examples=20)
@given(counts, st.floats(0.0, 3.0), st.sampled_from([1e-5, 1e-3, 0.05]))
def test_the_delta_term_is_the_theorems(case: tuple[int, int, int], epsilon: float, delta: float) -> None:
    m, r, v = case
    known = stats.binom(r, math.exp(epsilon) / (1 + math.exp(epsilon)))
    windows = [sum(known.pmf(j) for j in range(v - i, v)) / i for i in range(1, v + 1)]
    expected = known.sf(v - 1) + 2 * m * delta * max(windows, default=0.0)
    found = OneRunAudit(delta=delta).p_value(epsilon, canaries=m, guesses=r, right=v)
    assert found == pytest.approx(min(expected, 1.0), abs=1e-12)


@settings(max_examples=12)
@given(counts, st.sampled_from([0.0, 1e-5, 1e-2]), st.sampled_from([0.8, 0.95]))
def test_more_right_guesses_never_lower_the_bound(case: tuple[int, int, int], delta: float, confidence: float) -> None:
    m, r, v = case
    audit = OneRunAudit(delta=delta, confidence=confidence)
    bounds = [audit.epsilon(canaries=m, guesses=r, right=k) for k in range(v, min(v + 3, r + 1))]
    assert all(a <= b + 1e-12 for a, b in pairwise(bounds))
    stricter = OneRunAudit(delta=delta + 1e-3, confidence=confidence).epsilon(canaries=m, guesses=r, right=v)
    assert stricter <= bounds[0] + 1e-12


@pytest.mark.parametrize("delta", [0.0, 1e-6])
def test_randomised_response_stays_below_its_epsilon(delta: float) -> None:
    # Every canary's coin is told truly with probability e^eps / (1 + e^eps): the tight case of the theorem.
    true, m, runs, audit = 1.5, 2000, 4000, OneRunAudit(delta=delta, confidence=0.9)
    right = np.random.default_rng(0).binomial(m, 1 / (1 + math.exp(-true)), runs)
    # The bound exceeds the true epsilon exactly where that is rejected.
    p = {v: audit.p_value(true, canaries=m, guesses=m, right=v) for v in range(right.min(), right.max() + 1)}
    wrong = np.mean([p[v] < 0.1 for v in right.tolist()])
    assert wrong <= 0.1 + 3 * (0.09 / runs) ** 0.5
    assert wrong > 0.04 or delta
    first = min(v for v in p if p[v] < 0.1)
    bounds = [audit.epsilon(canaries=m, guesses=m, right=v) for v in (first - 1, first, int(np.median(right)))]
    assert bounds[0] <= true < bounds[1]
    assert abs(bounds[2] - true) < 0.12


def test_guessing_by_rank_and_abstaining() -> None:
    scores = torch.tensor([5.0, -3.0, 0.1, 4.0, -4.0, -0.1])
    included = torch.tensor([True, False, True, False, False, True])
    found = OneRunAudit(delta=0.0).guess(scores, included, guesses=5)
    assert (found.canaries, found.guesses, found.right) == (6, 4, 3)
    for bad, n in ((scores[:5], 4), (scores * torch.nan, 4), (scores, 1), (scores, 7)):
        with pytest.raises(InputError, match="expected a finite score"):
            OneRunAudit().guess(bad, included, guesses=n)


class Memory(nn.Module):
    """Sure of the samples it was given, and of nothing else."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.known = nn.Buffer(data.x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sure = (x[:, None] == self.known[None]).all(2).any(1)
        return torch.stack((10.0 * sure, torch.zeros(len(x))), 1)


def test_a_run_finds_out_a_model_that_remembers_and_no_other() -> None:
    x = torch.arange(240.0)[:, None] / 240
    data = Data(x, torch.zeros(240, dtype=torch.int64), ("a", "b"), index=torch.arange(240))
    rest, canaries, audit = data[:40], data[40:], OneRunAudit(delta=1e-6)
    seen: list[Data] = []

    def remember(given: Data) -> nn.Module:
        seen.append(given)
        return Memory(given)

    found = audit.run(remember, rest, canaries, guesses=160, seed=0)
    assert found.right == 160
    assert found.epsilon > 3
    assert torch.isin(rest.index, seen[0].index).all()
    assert abs(len(seen[0]) - 140) < 25
    again = audit.run(remember, rest, canaries, guesses=160, seed=0)
    assert again == found
    assert seen[1].index.equal(seen[0].index)
    forgetful = audit.run(lambda given: Memory(rest), rest, canaries, guesses=160, seed=0)
    assert forgetful.epsilon < 0.3
    with pytest.raises(InputError, match="repeat"):
        audit.run(remember, data, canaries, guesses=10, seed=0)


def test_refuses() -> None:
    for options in ({"delta": -0.1}, {"confidence": 1.0}):
        with pytest.raises(InputError, match="OneRunAudit"):
            OneRunAudit(**options)
    with pytest.raises(InputError, match="right <= guesses"):
        OneRunAudit().epsilon(canaries=10, guesses=4, right=5)
