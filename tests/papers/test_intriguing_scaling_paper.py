"""What is special to the intriguing-scaling paper: its two exact laws, and what each sham does to them."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import LogitGapDistribution
from assay.papers import intriguing_scaling as paper


@pytest.mark.parametrize("seed", range(3))
def test_uniform_logits_meet_their_laws_only_when_sorted(seed: int) -> None:
    found, unsorted = (paper.uniform(40_000, seed, sham) for sham in (None, "unsorted-logits"))
    assert found["shares"] < 5
    assert found["slopes"] < 5
    assert unsorted["shares"] > 100
    assert unsorted["slopes"] > 5
    assert found["power1"] == pytest.approx(1, abs=0.15)
    assert unsorted["power2"] == pytest.approx(1, abs=0.15)


def test_a_wrong_law_is_noticed() -> None:
    """Gaps a twentieth too wide are many standard errors off."""
    logits = torch.rand(40_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, wide = 1 - 0.9**10, LogitGapDistribution.fit(1.05 * logits).cumulative(0.1)
    assert abs(wide - p) > 5 * (p * (1 - p) / 40_000) ** 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_affine_model_is_exact_but_for_the_shams(seed: int) -> None:
    assert max(paper.affine(seed).values()) == 0
    assert paper.affine(seed, "random-sign")["found"] > 0.1
    assert paper.affine(seed, "random-sign")["mean_field"] == 0
    assert 0.02 < paper.affine(seed, "kept-errors")["found"] < 0.1
