"""The paper's own references, and what its shams take away and leave."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from assay.losses import SupConLoss
from assay.papers import srat as paper

SMOKE = paper.PAPER.scale("smoke")


@pytest.mark.parametrize("seed", range(3))
def test_theory_and_loss_are_exact_on_other_seeds(seed: int) -> None:
    found = paper._theory(SMOKE, seed, None)
    assert found["off"] < 0.01
    assert found["adversary_off"] < 0.02
    assert paper._contrast(seed, None)["contrast_off"] < 1e-9


def test_missing_delta_is_right_at_delta_one_alone() -> None:
    """The sham is the formula with t = ln(K / rho): the same where delta = 1."""
    assert paper._risk(1.0, 10.0, "missing-delta") == pytest.approx(paper._risk(1.0, 10.0, None))
    major, minor = paper._risk(4.0, 1.0, "missing-delta")
    assert (major, minor) == pytest.approx(tuple(norm.cdf([-2 - np.log(50), -2 + np.log(50)])))
    assert paper._risk(4.0, 1.0, None) == pytest.approx((0.0015, 0.153), abs=1e-3)


def test_shuffled_labels_keep_the_terms_and_their_number() -> None:
    g = torch.Generator().manual_seed(0)
    h, y = torch.randn(32, 6, generator=g, dtype=torch.float64), torch.arange(32) % 4
    real, sham = SupConLoss(reduction="none")(h, y), paper._ShuffledLoss(reduction="none")(h, y)
    assert (real > 0).sum() == (sham > 0).sum() == 32
    assert not torch.allclose(real, sham)


def test_the_parts_are_disjoint_and_the_rare_half_is_rare() -> None:
    given = paper._images("digits", 8)
    assert not set(given[0].index.tolist()) & set(given[1].index.tolist())
    rows = paper.make_long_tail(given[0].y, paper.RATIO, "step", largest=SMOKE["largest"], seed=0)
    assert np.bincount(given[0].y[rows]).tolist() == [30] * 5 + [2] * 5
