"""What the shams of the online-attacks paper leave alone, and how far they are from what it claims."""

from __future__ import annotations

import numpy as np
import pytest

from assay.papers import online_attacks as paper
from assay.papers.model import Table
from assay.runtime.statistics import t_interval


def _table(sham: str | None, seeds: int = 5) -> Table:
    """The theory at five seeds, with few orders and without the images."""
    scale = paper.PAPER.scale("smoke")
    given = paper.setup(scale, 0)
    tables = {}
    for seed in range(seeds):
        orders = paper._random_orders(2000, seed)
        tables[seed] = paper.experiment(scale, seed, {**given, "orders": orders}, sham)
    return Table.joined(tables)


@pytest.mark.parametrize("sham", [None, "no-sampling", "record-rate"])
def test_theory_is_told_from_its_shams(sham: str | None) -> None:
    table = _table(sham)
    exact, sampled, *margins = [c for c in paper.claims(table) if c.key]
    expected = "holds" if sham is None else "refuted"
    assert (exact.verdict, sampled.verdict) == (expected, expected)
    assert len(margins) == len(paper.MARGINS)
    if sham == "no-sampling":
        for k in paper.MARGINS:
            low, high = t_interval(table.where(k=k).per_seed("ratio", arm="virtual+"))
            assert low - 0.01 < k / paper.N < high + 0.01
    if sham == "record-rate":  # one of the k best at rate 1/j is right for k = 1
        assert max(table.values("gap", k=1)) < 1e-12


def test_noise_never_costs_more_than_its_probability() -> None:
    rows = paper._noise(paper._random_orders(3000, 0), 0)
    shares = [r["seen_share"] for r in rows]
    assert np.all(np.diff(shares) < 0)
    assert min(r["above"] for r in rows) > 0
