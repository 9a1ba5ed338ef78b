"""What is special to the rscp-plus paper: its half-space, its reference sets, and the joint network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.certify import RSCPPlus, SmoothedScores, noisy_outputs
from assay.data import load_data
from assay.papers import rscp_plus as paper
from assay.runtime.random import seeded


@pytest.mark.parametrize("seed", range(4))
def test_half_space_needs_the_shift(seed: int) -> None:
    real, sham = paper.line(seed, 6), paper.line(seed, 6, sham="no-shift")
    assert real["differing"] == 0 < sham["differing"]
    # The expected coverage, from the normal law: both slacks add to 0.9, and 0.5 lost in Phi^-1 takes it to 0.80.
    assert real["worst"] == pytest.approx(0.912, abs=0.015)
    assert sham["worst"] == pytest.approx(0.802, abs=0.025)


def test_reference_sets_tell_a_dropped_slack() -> None:
    g = torch.Generator().manual_seed(0)
    mean = torch.rand(300, 5, generator=g, dtype=torch.float64)
    smoothed = SmoothedScores(mean, mean * (1 - mean), 4000)
    y = torch.randint(5, (300,), generator=g)
    fitted = RSCPPlus(alpha=0.3).calibrate(smoothed, y)
    expected = paper.reference_sets(fitted, smoothed)
    assert np.array_equal(fitted.included(smoothed).numpy(), expected)
    assert not np.array_equal(replace(fitted, slack_=0.0).included(smoothed).numpy(), expected)


def test_joint_network_gives_the_logits_of_both() -> None:
    x = load_data("digits:test").x[:12]
    first = paper._network(load_data("digits:train"), 0)
    with seeded(1, "other"):
        other = paper.copy.deepcopy(first)
        torch.nn.init.normal_(other.head.weight)  # type: ignore[union-attr, arg-type]
    both = noisy_outputs(paper._side_by_side(first, other), x, sigma=0.25, draws=4)
    for part, model in enumerate((first, other)):
        alone = noisy_outputs(model, x, sigma=0.25, draws=4).views
        assert alone is not None
        assert torch.allclose(paper._half(both, part).views, alone, atol=1e-5)  # type: ignore[arg-type]
