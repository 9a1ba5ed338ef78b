"""What the shams of robust-active-distillation change, and its linear programme."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.papers.robust_active_distillation import RULES, _gains, _value, _worst


def test_shams_keep_support_or_numbers() -> None:
    g = torch.tensor([0.3, 0.9, 0.2, 0.6], dtype=torch.float64)
    real, proportional, permuted = (RULES[s]().weights(g, 3) for s in (None, "proportional-gain", "permuted-index"))
    assert torch.equal(real > 0, proportional > 0)
    assert proportional[1] > proportional[3] > proportional[0]
    assert real[1] < real[3] < real[0]
    assert torch.allclose(permuted.sort().values, real.sort().values)
    assert permuted[3] == 0


def test_value_of_small_games() -> None:
    assert _value(np.array([0.4, 1.0]), 0) == pytest.approx(1.0)
    assert _value(np.array([0.4, 1.0]), 1) == pytest.approx(1 / (1 / 0.4 + 1))
    assert _worst(np.array([0.5, 0.5]), np.array([0.4, 1.0]), 1) == pytest.approx(0.2)


def test_gains_are_gains() -> None:
    found = _gains(9, 0)
    assert all(2 <= len(g) <= 50 and g.min() > 0 and g.max() <= 1 for g in found)
    assert len(np.unique(found[2])) <= 10
