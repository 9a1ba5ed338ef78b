"""What the shams of data-diet change, and its augmentation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from assay.data import load_data
from assay.papers.data_diet import _crop_and_flip, _scores, _wrong_labels
from assay.runtime.random import Draws


def test_misaligned_scores_are_the_same_numbers_elsewhere() -> None:
    runs = {"trained": torch.rand(3, 50), "untrained": torch.rand(3, 50)}
    real, moved, before = (_scores(runs, 1, sham) for sham in (None, "misaligned-scores", "untrained-scores"))
    assert torch.equal(moved.sort().values, real.sort().values)
    assert (moved != real).float().mean() > 0.8
    assert torch.equal(before, runs["untrained"].mean(0))


def test_wrong_labels_are_wrong_and_a_tenth() -> None:
    data = load_data("digits:train")
    noisy, wrong = _wrong_labels(data, 0)
    assert torch.equal(noisy.y != data.y, wrong)
    assert 0.07 < wrong.float().mean() < 0.13


def test_crops_by_hand() -> None:
    index = torch.arange(12)
    x = torch.rand(12, 3, 8, 6)
    found, draws = _crop_and_flip(x, Draws(0, "augment", index)), Draws(0, "augment", index)
    corner, mirrored = draws.integers(9, 2), draws.integers(2)
    for i in range(12):
        row, column = corner[i].tolist()
        crop = F.pad(x[i], (4, 4, 4, 4))[:, row : row + 8, column : column + 6]
        assert torch.equal(found[i], crop.flip(2) if mirrored[i] else crop)
    assert 0 < int(mirrored.sum()) < 12
