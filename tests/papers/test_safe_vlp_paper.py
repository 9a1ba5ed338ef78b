"""What the paper on safe vision and language decides by: exact checks on other seeds, and what its shams lose."""

from __future__ import annotations

import numpy as np
import torch

from assay.papers import safe_vlp as paper


def test_exact_checks_on_other_seeds_and_what_refutes_the_shams() -> None:
    for seed in range(3):
        ranking = {s: paper.ranking_errors(paper.Rules(s), seed, 5000) for s in (None, "unsorted-coverage")}
        assert max(ranking[None].values()) < 1e-3
        assert ranking["unsorted-coverage"]["oracle_trust"] > 0.2
        assert ranking["unsorted-coverage"]["oracle_excess"] > 0.01
        signs = {s: paper.miscalibration_errors(paper.Rules(s), seed) for s in (None, "unsigned-miscalibration")}
        assert signs[None]["bounded"] > -1e-12
        assert signs[None]["mixed"] > 0.01
        assert signs[None]["under"] < -0.19
        assert signs["unsigned-miscalibration"]["mixed"] < 1e-12
        assert signs["unsigned-miscalibration"]["under"] > 0.19


def test_noise_lowers_trust_and_position_does_not_know_it() -> None:
    assert paper.noise_correlation(paper.Rules(None), 0) < -0.95
    assert abs(paper.noise_correlation(paper.Rules("unsorted-coverage"), 0)) < 0.8


def test_unsigned_scores_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 100), rng.integers(3, size=100)
    assert (paper.unsigned(p, y) >= np.abs(paper.Rules(None).by_class(p, y)) - 1e-12).all()


def test_towers_read_the_image_and_the_question() -> None:
    model = paper.TwoTowers()
    x = torch.randn(2, 194)
    x[:, :192] = x[0, :192].clone()
    x[:, 192:] = torch.eye(2)
    out = model(x)
    assert out.shape == (2, 5)
    assert not torch.allclose(out[0], out[1])
