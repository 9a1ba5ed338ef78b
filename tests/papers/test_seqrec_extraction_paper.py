"""The exact part of the paper, and that its shams keep the sizes of what they exchange."""

from __future__ import annotations

import pytest
import torch

from assay.papers import seqrec_extraction as paper
from assay.runtime.random import seeded


@pytest.mark.parametrize("seed", range(3))
def test_zero_set_and_signs_hold_and_refute_the_shams(seed: int) -> None:
    real = paper.exact(seed)
    assert real["zero"] <= 1e-9
    assert real["signs"] == 0
    assert real["sum"] <= 1e-12
    assert real["ranking"] <= 1e-9
    for sham in paper.PAPER.shams:
        changed = paper.exact(seed, sham)
        assert changed["zero"] > 0.1
        assert changed["signs"] > 100


def test_shams_move_as_many_items_as_the_repair() -> None:
    g = torch.Generator().manual_seed(0)
    scores, lists = torch.randn(20, 31, generator=g), torch.rand(20, 30, generator=g).argsort(1)[:, :10] + 1
    scores[:, 7] = -torch.inf
    with seeded(0, "sets"):
        (a, missing), (b, wrong) = paper.Drawn(0.5, 10).sets(scores, lists)
    (_, m), (_, w) = paper.BidirectionalRepairLoss(0.5, 10).sets(scores, lists)
    assert missing.equal(m)
    assert wrong.equal(w)
    assert all(len({*x, *y}) == 20 for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert not (torch.cat((a, b), 1) == 7).any()
    (own, down), (theirs, up) = paper.Swapped(0.5, 10).sets(scores, lists)
    assert theirs.equal(lists)
    assert up.equal(m)
    assert down.equal(w)
    assert not (own == 7).any()


def test_markov_users_mostly_follow_one_of_four() -> None:
    data = paper.markov(0)
    pairs = {}
    for s in data.sequences:
        for a, b in zip(s[:-1].tolist(), s[1:].tolist(), strict=True):
            pairs.setdefault(a, []).append(b)
    shares = [sorted((row.count(i) for i in set(row)), reverse=True)[:4] for row in pairs.values() if len(row) > 12]
    assert sum(map(sum, shares)) / sum(len(row) for row in pairs.values() if len(row) > 12) > 0.75
