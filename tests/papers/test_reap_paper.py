"""What is special to the reap paper: its reference, what its shams change, and its arms for large scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from assay.papers import reap as paper
from assay.papers.model import Scale


def test_the_reference_homography_maps_points_and_keeps_lines() -> None:
    target = np.array([[3.0, 2.0], [40.0, 6.0], [37.0, 33.0], [1.0, 29.0]])
    h = paper.homography(paper.CORNERS[4], target)
    ends = np.array([(x, y, 1) for x, y in paper.CORNERS[4]]) @ h.T
    np.testing.assert_allclose(ends[:, :2] / ends[:, 2:], target, atol=1e-9)
    affine = paper.homography(paper.CORNERS[3], target[:3])
    middle = np.mean(paper.CORNERS[3], 0)
    np.testing.assert_allclose(affine[:2] @ (*middle, 1), target[:3].mean(0), atol=1e-9)


def test_the_reference_looks_up_between_pixels_and_fades_at_the_edge() -> None:
    sign = np.arange(paper.SIGN**2, dtype=float).reshape(1, paper.SIGN, paper.SIGN)
    place = np.array([[[2.5, 1.0], [0.0, 3.25], [-0.5, 0.0], [-1.0, 5.0], [99.0, 0.0]]])
    found = paper.bilinear(sign, place)[0, 0]
    np.testing.assert_allclose(found, [paper.SIGN + 2.5, 3.25 * paper.SIGN, 0.0, 0.0, 0.0])
    assert paper.bilinear(np.ones((1, paper.SIGN, paper.SIGN)), place)[0, 0].tolist() == [1, 1, 0.5, 0, 0]


def test_the_inverse_sham_keeps_a_paste_that_moves_nothing() -> None:
    at_home = torch.tensor([paper.CORNERS[4]], dtype=torch.float64)
    for sham in (None, "inverse-homography", "shuffled-relight"):
        matrix = paper._Shammed(sham=sham).matrix((paper.SIGN, paper.SIGN), at_home)
        torch.testing.assert_close(matrix[0], torch.eye(3, dtype=torch.float64))


def test_the_shuffling_sham_only_exchanges_light() -> None:
    scenes = paper.setup(paper.PAPER.scale("smoke"), 0)["square"]
    options = (scenes.images, scenes.keypoints, scenes.obj_to_img, scenes.obj_mask)
    plain, mixed = (paper._Shammed(sham=s).fit(*options) for s in (None, "shuffled-relight"))
    assert mixed.equal(plain[torch.arange(-1, len(plain) - 1)])
    assert paper._Shammed(sham="inverse-homography").fit(*options).equal(plain)


def test_arms_for_large_scale_run() -> None:
    sizes = paper.PAPER.scale("smoke").sizes
    scale = Scale("gpu", 1, {**sizes, "signs": 4, "detector": 150, "judged": 40, "attack": 20})
    given = paper.setup(scale, 0)
    table = paper.experiment(scale, 0, given, None)
    arms = {r["arm"] for r in table.rows}
    assert {"pasted", "made on pasted", "transformed", "judged unlit", "random patch", "clean"} <= arms
    assert 0.2 < table.values("ap", arm="clean")[0] <= 1
    success = {arm: table.values("success", arm=arm)[0] for arm in ("pasted", "transformed", "random patch")}
    assert all(0 <= v <= 1 or math.isnan(v) for v in success.values())
    support = [c for c in paper.claims(table) if not c.key]
    assert len(support) == 3
    assert paper.figure(table).axes


@pytest.mark.parametrize("seed", range(4))
def test_exact_checks_hold_on_other_seeds(seed: int) -> None:
    assert paper._gradient_off(seed) < 1e-6
    assert paper._paste_off(seed) < 1e-5
    assert paper._asr_off(seed) < 1e-6
