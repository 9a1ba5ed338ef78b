"""Risk over coverage: perfect and random orders, ties, bounds and hand-made examples."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from assay.decide import (
    aurc,
    e_auopt_rc,
    e_aurc,
    optimal_area,
    random_excess,
    risk_coverage,
    trust_index,
)
from assay.runtime.errors import InputError

samples = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30).filter(
    lambda s: 0 < sum(c for c, _ in s) < len(s)
)


def test_by_hand() -> None:
    right, u = [1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]
    coverage, risk = risk_coverage(right, u)
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert aurc(right, u) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert e_aurc(right, u) == pytest.approx((1 / 2 + 1 / 3) / 4)
    assert trust_index(right, u) == pytest.approx(2 / 3)
    assert trust_index(right, u, coverage=0.5) == pytest.approx(1 / 2)
    assert e_auopt_rc(right, u) == pytest.approx((1 / 3) / 2 / 4)


@given(samples)
def test_a_perfect_order_and_the_bounds(drawn: list[tuple[bool, int]]) -> None:
    right, u = (np.array(part, float) for part in zip(*drawn, strict=True))
    a = right.mean()
    assert trust_index(right, 1 - right) == pytest.approx(1.0, abs=1e-12)
    assert e_auopt_rc(right, 1 - right) == pytest.approx(0.0, abs=1e-12)
    assert e_aurc(right, 1 - right) == pytest.approx(0.0, abs=1e-12)
    assert max(0, (2 * a - 1) / a) - 1e-12 <= trust_index(right, u) <= 1 + 1e-12
    assert e_auopt_rc(right, u) >= -1e-12
    assert trust_index(right, right) == pytest.approx(max(0, (2 * a - 1) / a), abs=1e-12)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1)), min_size=2, max_size=5))
def test_ties_are_the_mean_over_their_orders(drawn: list[tuple[bool, int]]) -> None:
    right, u = (np.array(part, float) for part in zip(*drawn, strict=True))
    orders = [np.array(o) for o in permutations(range(len(u)))]
    each = [risk_coverage(right, u + 1e-6 * o)[1] for o in orders]
    assert risk_coverage(right, u)[1] == pytest.approx(np.mean(each, 0), abs=1e-12)


def test_an_order_that_knows_nothing() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(100_000) < 0.8).astype(float)
    a = right.mean()
    for u, most in ((np.zeros(100_000), 1e-6), (rng.random(100_000), 5e-3)):
        assert trust_index(right, u) == pytest.approx(a, abs=most)
        assert e_auopt_rc(right, u) == pytest.approx(random_excess(a), abs=most)
    assert optimal_area(a) == pytest.approx(1 - a + a * math.log(a))


def test_macro_f1() -> None:
    rng = np.random.default_rng(1)
    y, guess, u = rng.integers(3, size=40), rng.integers(3, size=40), rng.random(40)
    risk = risk_coverage(y == guess, u, risk="macro_f1", y=y, predicted=guess)[1]
    order = np.argsort(u)
    for j in (1, 7, 40):
        assert risk[j - 1] == pytest.approx(1 - f1_score(y[order[:j]], guess[order[:j]], average="macro"))


def test_edges_and_bad_input() -> None:
    for right in (np.ones(5), np.zeros(5)):
        with pytest.warns(RuntimeWarning, match="accuracy"):
            assert trust_index(right, np.arange(5)) == right[0]
        assert e_auopt_rc(right, np.arange(5)) == 0
    good, u = np.array([1, 0, 1]), np.arange(3.0)
    for a, b in ((good, u[:2]), (good, u * np.nan), (good * 2, u), (good[:0], u[:0]), (good[:, None], u)):
        with pytest.raises(InputError, match="expected"):
            trust_index(a, b)
    with pytest.raises(InputError, match="expected"):
        trust_index(good, u, coverage=0.0)
    with pytest.raises(InputError, match="expected"):
        risk_coverage(good, u, risk="macro_f1")
    with pytest.raises(InputError):
        risk_coverage(good, u, risk="other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected"):
        optimal_area(0.0)


def test_scores_with_a_graph_are_taken() -> None:
    right, u = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.1, 0.3, 0.2], requires_grad=True)
    assert aurc(right, u) == aurc(right, u.detach()) == aurc(right.bool(), u.detach().numpy())
