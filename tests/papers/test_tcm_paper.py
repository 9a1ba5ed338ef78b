"""What is special to the paper on threshold-consistent margins: its data and its exact checks over seeds."""

import torch

from assay.losses import TCMLoss
from assay.papers import tcm
from assay.papers.tcm import PAPER, RULES, exact


def test_exact_checks_hold_on_other_seeds_and_refute_the_shams() -> None:
    for seed in range(3):
        found = exact(TCMLoss, seed)
        assert found["loss"] < 1e-9
        assert found["loops"] < 1e-12
        assert found["copies"] < 1e-15
        assert all(exact(RULES[sham], seed)["loss"] > 1e-3 for sham in PAPER.shams)


def test_unseen_classes_are_others_behind_the_same_maps() -> None:
    train, test = tcm._data(PAPER.scale("smoke"), 0)
    assert train.x.shape == (24, 12, 64)
    assert test.x.shape == (16 * 8, 64)
    flat = train.x.flatten(0, 1)
    assert torch.cdist(flat, test.x).min() > 0
    same = torch.cdist(train.x[0], train.x[0]).mean()
    assert same < torch.cdist(train.x[0], train.x[1]).mean()
