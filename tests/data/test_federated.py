"""The Dirichlet split: a partition, of the shape that alpha says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data import dirichlet_split
from assay.runtime.errors import InputError

Y = torch.arange(600) % 6


@settings(max_examples=25)
@given(
    n=st.integers(20, 200), clients=st.integers(1, 6), alpha=st.sampled_from([0.1, 1.0, 50.0]), seed=st.integers(0, 99)
)
def test_parts_are_a_partition_with_enough_in_each(n: int, clients: int, alpha: float, seed: int) -> None:
    parts = dirichlet_split(torch.arange(n) % 5, clients, alpha, seed=seed)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert torch.cat(parts).sort().values.equal(torch.arange(n))
    assert all(p.equal(p.sort().values) for p in parts)


def shares(alpha: float, seed: int) -> torch.Tensor:
    """The share of each class (6) that each of 5 clients holds."""
    parts = dirichlet_split(Y, 5, alpha, seed=seed)
    return torch.stack([torch.bincount(Y[p], minlength=6) for p in parts]) / 100


def test_shares_have_the_variance_of_the_dirichlet() -> None:
    """A share is Beta(alpha, 4 alpha): mean 1/5, variance (1/5)(4/5) / (5 alpha + 1)."""
    for alpha in (0.3, 2.0, 1000.0):
        found = torch.stack([shares(alpha, s) for s in range(60)]).double()
        expected = 0.16 / (5 * alpha + 1)
        assert float(found.mean()) == pytest.approx(0.2)
        assert float((found - 0.2).square().mean()) == pytest.approx(expected, rel=0.15, abs=2e-4)


def test_a_split_follows_from_its_seed() -> None:
    first, again, other = (dirichlet_split(Y, 3, 0.5, seed=s, min_size=40) for s in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(len(a) == len(b) and a.equal(b) for a, b in zip(first, other, strict=True))
    assert min(map(len, first)) >= 40


@pytest.mark.parametrize(("clients", "alpha", "least"), [(0, 1.0, 1), (3, 0.0, 1), (3, float("nan"), 1), (4, 1.0, 200)])
def test_what_cannot_be_met_is_refused(clients: int, alpha: float, least: int) -> None:
    with pytest.raises(InputError, match="expected alpha > 0"):
        dirichlet_split(Y, clients, alpha, seed=0, min_size=least)


def test_a_size_that_no_draw_meets_is_refused() -> None:
    with pytest.raises(InputError, match="no draw"):
        dirichlet_split(Y, 5, 0.01, seed=0, min_size=120)
