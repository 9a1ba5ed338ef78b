"""What the paper on out-of-domain unlabelled data decides by: exact checks on other seeds, and what its shams lose."""

from __future__ import annotations

import numpy as np

from assay.papers import out_of_domain_unlabeled as paper
from assay.science import shifted_gmm


def test_the_closed_form_on_other_seeds() -> None:
    for seed in range(3):
        found = paper.closed_form_gap(seed, count=10)
        assert found["sup"] < 1e-6
        assert found["random"] < 1e-9
        assert found["slab"] == 0


def test_the_sham_pool_keeps_marginals_and_loses_the_clusters() -> None:
    data = shifted_gmm(2, 4000, 30, mu_norm=3.0, test=1, seed=0)
    other = paper._unstructured(data.pool, 0)
    assert np.array_equal(np.sort(other, 0), np.sort(data.pool, 0))
    along = [np.var(pool @ data.mean / 3) for pool in (data.pool, other)]
    assert along[0] > 8
    assert along[1] < 3
