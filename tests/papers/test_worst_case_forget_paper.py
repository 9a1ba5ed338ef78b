"""The references of worst-case-forget on other seeds, and what its shams keep and lose."""

import numpy as np
import pytest
import torch

from assay.data import load_data
from assay.nets import MLP
from assay.papers import worst_case_forget as paper
from assay.unlearn import WorstCaseForgetSet


@pytest.mark.parametrize("seed", range(5))
def test_exact_parts_hold_on_other_seeds(seed: int) -> None:
    found = paper._projections(seed, None)
    assert max(found.values()) < 1e-9
    wrong = paper._projections(seed, "rescale-projection")
    assert min(wrong["projection"], wrong["again"]) > 0.1
    assert wrong["total"] < 1e-9
    assert paper._beaten(seed) <= 0.05
    assert paper._unmoved(seed) >= 0.95


def test_the_sorted_projection_shares_no_code_and_is_right_by_hand() -> None:
    assert paper._sorted_projection(np.array([2.0, 0.5, -1.0]), 1.5).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_shuffled_losses_are_the_same_losses_elsewhere() -> None:
    data, model = load_data("digits:train").limit(50), MLP(hidden=(8,)).eval()
    real, moved, again, later = (
        cls(m=5).losses(model, data, turn, 3)
        for cls, turn in (
            (WorstCaseForgetSet, 0),
            (paper._ShuffledIds, 0),
            (paper._ShuffledIds, 0),
            (paper._ShuffledIds, 1),
        )
    )
    assert torch.equal(real.sort().values, moved.sort().values)
    assert torch.equal(moved, again)
    assert not torch.equal(real, moved)
    assert not torch.equal(moved, later)
