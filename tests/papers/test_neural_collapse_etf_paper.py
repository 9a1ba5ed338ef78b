"""The exact part of the collapse paper."""

import numpy as np
import pytest

from assay.papers import neural_collapse_etf as paper

LIMITS = {"gram": 1e-12, "collapsed": 1e-8, "turned": 1e-8, "nc1_error": 1e-6}


@pytest.mark.parametrize("seed", range(5))
def test_identities(seed: int) -> None:
    found = paper.exact(seed)
    assert set(found) == set(LIMITS)
    assert all(found[name] <= limit for name, limit in LIMITS.items())


@pytest.mark.parametrize("seed", range(4))
def test_each_sham_changes_its_own_number_only(seed: int) -> None:
    scale = paper.PAPER.scale("claim")
    tables = {s: paper.experiment(scale, seed, [], s) for s in (None, *paper.PAPER.shams)}
    wrong = {s: t.per_seed("relative", np.max)[0] for s, t in tables.items()}
    assert wrong[None] < 1e-5
    assert wrong["count-blind"] < 1e-5
    assert wrong["missing-factor"] > 0.01
    merged = {s: t.values("minority", arm="R=1000")[0] for s, t in tables.items()}
    assert merged[None] > 0.99
    assert merged["missing-factor"] > 0.99
    assert merged["count-blind"] < -0.1
    assert all(t.values("gap").max() < 1e-5 for t in tables.values())


def test_long_tail_has_the_sizes_it_names_and_disjoint_parts() -> None:
    scale = paper.PAPER.scale("smoke")
    train, holdout, rare = paper._long_tail(scale, 3)
    expected = [scale["few"] if k in rare else scale["many"] for k in range(10)]
    assert train.y.bincount().tolist() == expected
    assert holdout.y.bincount().tolist() == [scale["many"] // 10] * 10
    assert not set(train.index.tolist()) & set(holdout.index.tolist())
    assert rare != paper._long_tail(scale, 4)[2]
