"""The exact part of the lirpa paper, and what its shams break and keep."""

from __future__ import annotations

import pytest
import torch

from assay.certify import CROWNIBPTraining
from assay.certify.bounds.registry import RULES
from assay.data import Batch, Data
from assay.nets import MLP
from assay.papers import lirpa as paper
from assay.training import State


@pytest.mark.parametrize("seed", range(2))
def test_exact_checks(seed: int) -> None:
    assert paper.linear_difference(seed) <= 1e-6
    assert paper.synonyms_difference(seed) <= 1e-5
    assert paper.two_neurons_difference() <= 1e-9


def test_swapped_lines_break_the_example_and_no_linear_model() -> None:
    kept = RULES[paper.RELU, None]
    with paper._rule("swapped-slopes"):
        assert paper.two_neurons_difference() > 1
        assert paper.linear_difference(0) <= 1e-6
    assert RULES[paper.RELU, None] is kept


def test_noise_training_keeps_schedule_and_plan() -> None:
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
    data = Data(x, y, ("a", "b"), (0.0, 1.0))
    real, sham = (cls(eps=0.1, epochs=3) for cls in (CROWNIBPTraining, paper._NoiseTraining))
    state = State(0, data, 10, step=6)
    assert real.plan() == sham.plan()
    assert real.radius(state) == sham.radius(state)
    batch, model = Batch(x, y, torch.arange(8), {}), MLP((1, 4, 4), 2, (8,))
    low, high = (float(t.bound_loss(model, batch, 0.1, state)) for t in (sham, real))
    assert low < high


def test_the_saving_by_fusion_grows_with_the_classes() -> None:
    few, many = (paper.operations(c, True) / paper.operations(c, False) for c in (10, 100))
    assert many < few < 1
    assert many < 0.35
