"""The contract of query samplers, over every exported one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import assay.curate
from assay.curate import Pool, QuerySampler
from assay.runtime.errors import InputError

METHODS = [
    c
    for c in (getattr(assay.curate, name) for name in assay.curate.__all__)
    if isinstance(c, type) and issubclass(c, QuerySampler) and "contract" not in vars(c)
]
samplers = pytest.mark.parametrize("cls", METHODS, ids=lambda c: c.__name__)


@pytest.fixture(scope="module")
def pool() -> Pool:
    """120 points, some alike, of a student that is sure of most."""
    g = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(120, 4, generator=g)
    z[100:] = z[80:100]
    return Pool(z.double().softmax(1), z, z[:5] + 1, 0.2)


def test_the_suite_sees_methods() -> None:
    names = {c.__name__ for c in METHODS}
    assert names >= {"RADSampler", "RandomQuery", "UncertaintyQuery", "CoresetQuery", "UncertaintyMixup"}


@samplers
@pytest.mark.parametrize("b", [1, 30, 120])
def test_b_distinct_positions(cls: type[QuerySampler], pool: Pool, b: int) -> None:
    query = cls().select(pool, b, seed=0)
    assert query.rows.dtype == torch.int64
    assert query.rows.shape == query.inclusion.shape == (b,)
    assert (query.rows.diff() > 0).all()
    assert 0 <= int(query.rows[0]) <= int(query.rows[-1]) < 120
    assert ((query.inclusion > 0) & (query.inclusion <= 1)).all()


@samplers
def test_same_seed_same_query_and_nothing_is_touched(cls: type[QuerySampler], pool: Pool) -> None:
    kept = pool.probs.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = cls().select(pool, 25, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(2)
    again = cls().select(pool, 25, seed=3)
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.inclusion, again.inclusion)
    assert torch.equal(pool.probs, kept)


@samplers
def test_inputs_are_points_or_mixtures_of_points(cls: type[QuerySampler], pool: Pool) -> None:
    x = torch.rand(120, 1, 3, 3)
    kept, rows = x.clone(), torch.arange(0, 120, 7)
    shown = cls().inputs(x, pool, rows, seed=0)
    assert shown.shape == (len(rows), 1, 3, 3)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert torch.equal(shown, cls().inputs(x, pool, rows, seed=0))
    assert torch.equal(x, kept)


@samplers
def test_asks_more_of_the_uncertain_or_covers(cls: type[QuerySampler], pool: Pool) -> None:
    """Better than chance at what it is for: no less informative than the pool, or no farther from it."""
    rows = cls().select(pool, 30, seed=0).rows
    gain = assay.curate.margin_gains(pool.probs)
    radius = torch.cdist(pool.features, pool.features[rows]).amin(1).max()
    worst = max(torch.cdist(pool.features, pool.features[torch.randperm(120)[:30]]).amin(1).max() for _ in range(5))
    assert gain[rows].mean() > gain.mean() or radius <= worst


@samplers
def test_bad_input(cls: type[QuerySampler], pool: Pool) -> None:
    for b in (0, 121):
        with pytest.raises(InputError, match=f"b={b} of 120"):
            cls().select(pool, b, seed=0)
    for probs in (pool.probs * 2, pool.probs * torch.nan, pool.probs[:, :1]):
        with pytest.raises(InputError, match="expected"):
            cls().select(replace(pool, probs=probs), 5, seed=0)
