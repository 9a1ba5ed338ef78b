"""The exact part of the Mahalanobis paper, on drawn features."""

import pytest
import torch

from assay.attacks import FGSM, Linf
from assay.papers import mahalanobis as paper
from assay.runtime.inference import predict

LIMITS = {"posterior": 1e-8, "distance": 1e-8, "affine": 1e-6, "added": 1e-8}


@pytest.mark.parametrize("seed", range(5))
def test_identities_hold_and_need_the_precision(seed: int) -> None:
    drawn = paper._features(seed)
    real, sham = paper.exact(*drawn), paper.exact(*drawn, sham="identity-precision")
    assert set(real) == set(LIMITS)
    for name, limit in LIMITS.items():
        assert real[name] <= limit
        assert name == "added" or sham[name] > limit


def test_features_are_drawn_from_the_seed_and_the_map_is_invertible() -> None:
    f, y, turn, _ = paper._features(3)
    torch.testing.assert_close(f, paper._features(3)[0], rtol=0, atol=0)
    assert not torch.equal(f, paper._features(4)[0])
    assert int(torch.linalg.matrix_rank(turn)) == f.shape[1]
    assert len(y.bincount().unique()) == 4  # unequal priors


def test_told_apart_by_hand() -> None:
    inside, outside = torch.arange(100.0), torch.tensor([50.5, 200.0])
    found = paper._told_apart(inside, outside)
    assert found == {"auroc": pytest.approx((51 / 100 + 1) / 2), "tnr": 0.5}


def test_attacked_images_are_right_before_and_wrong_after() -> None:
    train, test = (part.limit(200) for part in paper._images("digits"))
    model = paper._trained(paper.PAPER.scale("smoke"), train, 0, "all")
    normal, abnormal = paper.attacked(FGSM(ball=Linf(0.2)), model, test, 0)
    k = len(abnormal)
    assert len(normal) == 2 * k > 0
    assert float((normal[:k] - abnormal).abs().max()) <= 0.2 + 1e-6
    before, noisy, after = (predict(model, x).argmax(1) for x in (normal[:k], normal[k:], abnormal))
    assert torch.equal(before, noisy)
    assert not (before == after).any()
    assert 0 < float((normal[k:] - normal[:k]).abs().mean()) < 0.2 / 4
