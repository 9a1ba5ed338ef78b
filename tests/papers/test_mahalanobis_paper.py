"""The exact part of the Mahalanobis paper, on drawn features."""

import pytest
import torch

from assay.papers import mahalanobis as paper

LIMITS = {"posterior": 1e-8, "distance": 1e-8, "affine": 1e-6}


@pytest.mark.parametrize("seed", range(5))
def test_identities_hold_and_need_the_precision(seed: int) -> None:
    drawn = paper._features(seed)
    real, sham = paper.exact(*drawn), paper.exact(*drawn, sham="identity-precision")
    assert set(real) == set(LIMITS)
    for name, limit in LIMITS.items():
        assert real[name] <= limit < sham[name]


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


def test_normal_inputs_stay_in_bounds_and_move_by_eps() -> None:
    data = paper._images("digits")[1][:20]
    x = paper._normal(data, 0)
    assert torch.equal(x[:20], data.x)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert float((x[20:] - x[:20]).abs().max()) <= paper.EPS + 1e-6
