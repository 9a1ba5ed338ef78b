"""What the paper on noisy pre-training decides by: exact checks on other seeds, its data, and its correlation."""

from __future__ import annotations

import numpy as np
import torch

from assay.adapt import NMTune
from assay.papers import nmtune as paper


def test_exact_checks_on_other_seeds_and_what_refutes_the_shams() -> None:
    for seed in range(2):
        found = paper.exact(NMTune, seed)
        assert max(found[k] for k in ("mse", "cov", "svd", "slope")) < 1e-6
        assert found["whitened"] < 1e-9
        assert found["zero"] == 0
        for sham in paper.PAPER.shams:
            other = paper.exact(paper.RULES[sham], seed)
            assert other["cov"] > 1e-3
            assert max(other["mse"], other["svd"]) < 1e-6
        assert abs(other["whitened"] - 1) < 1e-9


def test_source_and_shifted_images() -> None:
    scale = paper.PAPER.scale("smoke")
    clean, noisy = (paper._source(scale, e, 0) for e in (0.0, 0.3))
    assert torch.equal(clean.x, noisy.x)
    assert abs(float((clean.y != noisy.y).float().mean()) - 0.3) < 0.08
    assert torch.equal(clean.y % 4, torch.arange(len(clean)) % 4)
    x = torch.rand(50, 1, 8, 8)
    out = paper._shifted(x, 0)
    assert out.shape == x.shape
    assert 0 <= out.min() <= out.max() <= 1


def test_correlation_of_known_columns() -> None:
    z = np.random.default_rng(0).normal(size=(50, 3))
    pairs = [np.corrcoef(z[:, i], z[:, j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert np.isclose(paper.correlation(z), np.square(pairs).mean())
    assert np.isclose(paper.correlation(np.column_stack((z[:, 0], -2 * z[:, 0]))), 1)
    assert paper.correlation(np.column_stack((z[:, 0], np.ones(50)))) == 0
