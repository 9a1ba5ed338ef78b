"""What the paper on temperature decides by: each sham changes what it names and nothing else."""

from __future__ import annotations

import torch

from assay.papers import contrastive_temperature as paper
from assay.runtime.random import seeded


def test_the_outer_temperature_leaves_the_shares_as_they_are() -> None:
    given = {"fixed": paper._scores(0)}
    real, sham = ([r["spread"] for r in paper._shares(given, s)] for s in (None, "outer-temperature"))
    assert sorted(real) == real
    assert max(sham) - min(sham) < 1e-9
    assert abs(sham[0] - real[-1]) < 1e-9


def test_random_negatives_are_as_many_and_other_ones() -> None:
    negative = paper._scores(0)[1]
    with seeded(0, "select"):
        chosen = paper._RandomNegatives(1.0, 0.2).select(negative)
    hardest = paper.HardContrastive(1.0, 0.2).select(negative)
    assert chosen.shape == hardest.shape
    assert torch.isin(chosen, negative).all()
    assert (hardest.mean(1) > chosen.mean(1)).all()
