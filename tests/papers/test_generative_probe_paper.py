"""What the paper on generative probes decides by: sizes, and what the shams change."""

from __future__ import annotations

import numpy as np

from assay.papers import generative_probe as paper
from assay.represent import GaussianClasses, sample_complexity


def test_sizes_grow_by_one_at_least() -> None:
    sizes = paper._sizes(2, 50)
    assert sizes[0] == 4
    assert (np.diff(sizes) >= 1).all()
    assert 650 <= sizes[-1] <= 1000


def test_without_independence_naive_bayes_needs_more_samples() -> None:
    simulator, sizes = GaussianClasses(classes=2, features=60), paper._sizes(2, 60)
    real, sham = (sample_complexity(simulator, paper._probe(s), seed=1, sizes=sizes) for s in (None, "full-covariance"))
    assert real is not None
    assert sham is not None
    assert sham > 4 * real
