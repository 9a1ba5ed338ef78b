"""What ShrinkMatch's paper decides by: each sham changes the class spaces as it says and nothing else."""

from __future__ import annotations

import pytest
import torch

from assay.data import Data
from assay.losses import shrink_targets
from assay.papers import shrinkmatch as paper
from assay.training import State


def _state(seed: int = 0) -> State:
    return State(seed, Data(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), ("a", "b")), 1)


@pytest.mark.parametrize("c", paper.KINDS)
def test_shams_keep_the_label_and_change_the_space(c: int) -> None:
    case = next(k for k in paper._drawn(200, 1) if k["probs"].shape[1] == c)
    q = case["probs"]
    real = shrink_targets(q, paper.TAU)
    full, drawn = (paper.RULES[s]().space(q, _state()) for s in ("lower-threshold", "random-removal"))
    assert torch.equal(full.top1, real.top1)
    assert full.keep.all()
    assert full.satisfied.all()
    assert torch.equal(drawn.top1, real.top1)
    assert torch.equal((~drawn.keep).sum(1), real.removed)
    assert drawn.keep.gather(1, real.top1[:, None]).all()
    assert torch.equal(drawn.satisfied, real.satisfied)
    assert not torch.equal(drawn.keep, real.keep)


def test_random_removal_is_even_over_the_rivals() -> None:
    q = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).repeat(4000, 1)
    gone = ~paper.RULES["random-removal"]().space(q, _state()).keep
    removed = int(shrink_targets(q[:1], paper.TAU).removed)
    assert gone[:, 0].sum() == 0
    assert torch.allclose(gone[:, 1:].float().mean(0), torch.full((4,), removed / 4), atol=0.04)


def test_the_labelled_are_a_few_of_each_class_and_not_in_the_pool() -> None:
    given = paper.setup(paper.PAPER.scale("smoke"), 3)
    assert torch.bincount(given["labelled"].y).tolist() == [paper.PER_CLASS] * 10
    assert not torch.isin(given["pool"].index, given["labelled"].index).any()
