"""Entropy and dominance of singular values, where they are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.represent import largest_singular_value_ratio, singular_value_entropy
from assay.runtime.errors import InputError


@pytest.mark.parametrize(("rank", "d"), [(3, 8), (8, 8), (1, 5)])
def test_orthonormal_rows(rank: int, d: int) -> None:
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0][:rank]
    assert singular_value_entropy(4 * q) == pytest.approx(math.log(rank), abs=1e-12)
    assert largest_singular_value_ratio(q) == pytest.approx(math.log(rank), abs=1e-12)


def test_rank_one_has_no_entropy() -> None:
    x = np.outer(np.arange(1.0, 5), np.arange(1.0, 4))
    assert largest_singular_value_ratio(x) == pytest.approx(0.0, abs=1e-12)
    assert singular_value_entropy(x) == pytest.approx(0.0, abs=1e-12)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_diagonal_features(s: list[float]) -> None:
    p = np.array(s) / sum(s)
    assert singular_value_entropy(np.diag(s)) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-9)
    assert largest_singular_value_ratio(np.diag(s)) == pytest.approx(-math.log(p.max()), abs=1e-9)


def test_prepared_rows_have_unit_length_and_no_mean() -> None:
    x = np.random.default_rng(1).normal(size=(30, 6))
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    rows -= rows.mean(1, keepdims=True)
    assert singular_value_entropy(x * 5, center=True) == pytest.approx(singular_value_entropy(rows), abs=1e-12)
    assert singular_value_entropy(x, center=True) <= math.log(5) + 1e-12


@pytest.mark.parametrize("x", [np.zeros((3, 2)), np.full((2, 2), np.nan), np.ones(4), np.zeros((0, 3))])
def test_bad_features(x: np.ndarray) -> None:
    for measure in (singular_value_entropy, largest_singular_value_ratio):
        with pytest.raises(InputError, match="expected"):
            measure(x)
