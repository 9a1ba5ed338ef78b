"""The line between two networks: what lies on it, what above, and that the coin keeps images and answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.defenses import MixtureScan
from assay.papers import adaptive_smoothing as paper
from assay.papers.model import Table


def table(points: list[tuple[float, float, float]]) -> Table:
    """One seed for each triple: gap in clean accuracy, share of the way to the robust network, height over the line."""
    rows = []
    for seed, (gap, share, above) in enumerate(points):
        ends = {"standard": (0.9, 0.1), "robust": (0.9 - gap, 0.5)}
        mixed = (0.9 - share * gap, 0.1 + share * 0.4 + above)
        rows += [{"seed": seed, "arm": a, "clean": c, "robust": r} for a, (c, r) in {**ends, "mixture": mixed}.items()]
    return Table.of(rows)


def test_heights_by_hand() -> None:
    assert paper.heights(table([(0.1, 0.3, 0.0), (0.3, 0.9, 0.0)])) == pytest.approx([0.0, 0.0])
    assert paper.heights(table([(0.2, 0.5, 0.1), (0.2, 0.7, 0.2)])) == pytest.approx([0.1, 0.2])
    weighted = paper.heights(table([(0.1, 0.5, 0.4), (0.3, 0.5, 0.0)]))
    assert np.mean(weighted) == pytest.approx(0.4 * 0.1 / 0.4)


def test_a_coin_answers_as_one_of_the_networks_and_lies_on_the_line() -> None:
    g = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 40_000, generator=g) < torch.tensor([0.9, 0.9, 0.6])[:, None]
    robust = clean & (torch.rand(3, 40_000, generator=g) < torch.tensor([0.05, 0.4, 0.8])[:, None])
    scan = paper._switched(MixtureScan((0.0, 0.7, 1.0), clean, robust), 1, "test")
    for mine, given in ((scan.clean, clean), (scan.robust, robust)):
        assert mine[0].equal(given[0])
        assert mine[2].equal(given[2])
        assert ((mine[1] == given[0]) | (mine[1] == given[2])).all()
    rows = [{"seed": 0, "arm": a, **r} for a, r in zip(("standard", "mixture", "robust"), scan.table(), strict=True)]
    assert abs(float(paper.heights(Table.of(rows))[0])) < 0.01


def test_logits_are_read_between_their_points() -> None:
    ends = {0.0: {"clean": 0.9, "robust": 0.1}, 1.0: {"clean": 0.7, "robust": 0.5}}
    right = torch.zeros(1, 10, dtype=torch.bool)
    clean, robust = right.clone(), right.clone()
    clean[0, :8], robust[0, :2] = True, True
    assert paper._logit_robustness(MixtureScan((0.5,), clean, robust), ends, 0.85) == pytest.approx(0.15)
