"""What the shams of long-tail-memorization change, and the learner of its gpu scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.data import load_data
from assay.papers.long_tail_memorization import _formed, _left_one_out, _network, _quadrature, _shifted


def test_shifted_moment_is_tau_of_one_less_with_one_more_sample_left() -> None:
    assert _shifted([0, 1, 3], 1000, prior=("gamma", 0.05), N=2000) == pytest.approx(np.array([0, 0.05, 2.05]) / 1100)


def test_exact_checks_tell_the_shams() -> None:
    assert _quadrature(None) < 1e-11
    assert _quadrature("shifted-moment") > 0.1
    assert _left_one_out(0, None) == 0
    assert _left_one_out(0, "rolled-masks") > 0.5


def test_rolled_masks_are_those_of_the_model_before() -> None:
    correct, masks = torch.rand(20, 5) < 0.5, torch.rand(20, 5) < 0.5
    assert torch.equal(_formed(correct, masks, "rolled-masks"), _formed(correct.roll(-1, 0), masks, None))


def test_network_predicts_classes() -> None:
    train, test = load_data("digits:train")[:64], load_data("digits:test")[:20]
    found = _network(2, train)(train.x, train.y, test.x, seed=0)
    assert found.shape == (20,)
    assert found.dtype == torch.int64
    assert 0 <= int(found.min()) <= int(found.max()) < 10
