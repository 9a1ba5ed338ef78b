"""What the shams of EnsLoss keep and what they take away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.losses import EnsLoss
from assay.papers import ensloss as paper


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    f, y = 3 * torch.randn(40, generator=g, dtype=torch.float64), torch.randint(2, (40,), generator=g)
    return f, y, f * (2 * y - 1)


@pytest.mark.parametrize("sham", paper.PAPER.shams)
def test_shams_keep_the_drawn_slopes_and_move_them(sham: str) -> None:
    f, y, z = _batch()
    real, moved = EnsLoss(tail="none").derivatives(f, y), paper.RULES[sham](tail="none").derivatives(f, y)
    assert torch.equal(real.sort().values, moved.sort().values)
    assert not torch.equal(real, moved)
    assert (real[z.argsort()].diff() >= 0).all()
    assert not (moved[z.argsort()].diff() >= 0).all()


def test_reversed_ranks_are_a_concave_surrogate() -> None:
    f, y, z = _batch()
    moved = paper.RULES["reversed-rank"](tail="none").derivatives(f, y)
    assert (moved[z.argsort()].diff() <= 0).all()


def test_reference_by_hand() -> None:
    e, z = np.log(np.array([0.5, 3.0, 0.25])), np.array([2.0, -1.0, 0.5])
    assert np.allclose(paper.reference(e, z, 0.0), np.array([-0.25 / 2, -1.0, -0.5]) - 1e-6)


def test_flipped_labels_are_a_quarter() -> None:
    data = paper._pair(paper._images("digits", "train"), 4, 9)
    share = float((paper._flipped(data, 3).y != data.y).float().mean())
    assert 0.15 < share < 0.35
    assert set(data.y.tolist()) == {0, 1}
    assert data.classes == ("4", "9")
