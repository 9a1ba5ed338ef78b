"""What WAD's paper decides by: each sham changes the weights as it says and leaves pseudo labels alone."""

from __future__ import annotations

import torch

from assay.labels.semi_supervised import TRUTH
from assay.papers import wad as paper


def test_shams_change_the_weights_and_nothing_else() -> None:
    given = paper._drawn(paper.PAPER.scale("smoke"), 3)
    labelled, pool = given["labelled"], given["pool"]
    found = {s: rule().knowledge(torch.nn.Identity(), None, labelled, pool, 5) for s, rule in paper.RULES.items()}
    pseudo, weight = found[None]
    assert all(torch.equal(p, pseudo) for p, _ in found.values())
    shuffled = found["shuffled-weights"][1]
    assert not torch.equal(shuffled, weight)
    for k in range(len(paper.TARGETS)):
        assert torch.equal(shuffled[pseudo == k].sort().values, weight[pseudo == k].sort().values)
    assert (found["no-runner-up"][1] >= weight).all()


def test_the_pool_holds_the_mismatch_and_no_labelled_image() -> None:
    scale = paper.PAPER.scale("smoke")
    given = paper._drawn(scale, 4)
    known = given["pool"].fields[TRUTH] >= 0
    assert int(known.sum()) == scale["targets"]
    assert int((~known).sum()) == 180
    assert torch.bincount(given["labelled"].y).tolist() == [paper.PER_CLASS] * 3
    assert not torch.isin(given["pool"].index, given["labelled"].index).any()
    assert set(given["test"].y.tolist()) == {0, 1, 2}
    assert given["labelled"].fields == {}
