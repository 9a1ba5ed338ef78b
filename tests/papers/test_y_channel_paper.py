"""What the shams of the Y channel paper keep and what they take away, on a perturbation of pure luminance."""

from __future__ import annotations

import pytest
import torch

from assay.papers import y_channel as paper
from assay.runtime.random import torch_rng

LUMA = 0.01 * torch.randn(40, 1, 16, 16, generator=torch_rng(0, "luma")).expand(-1, 3, -1, -1)
X = torch.full_like(LUMA, 0.5)


def test_pure_luminance_is_seen_and_lost_without_alignment() -> None:
    assert paper.shares(X, X + LUMA, None, 0)["Y"] == pytest.approx(1)
    unaligned = paper.shares(X, X + LUMA, "unaligned-channels", 0)
    assert unaligned == pytest.approx(paper.BASELINE, abs=0.03)


def test_the_offset_drowns_luminance() -> None:
    assert paper.shares(X, X + LUMA, "offset-on-delta", 0)["Y"] < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_exact_checks(seed: int) -> None:
    assert paper._round_trip(seed) <= 1e-5
    assert paper._plane(seed) <= 1e-9
