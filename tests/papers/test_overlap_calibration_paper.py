"""What is special to the paper on overlaps: nearest neighbours meet the formula, and the divergence is exact."""

import math

import torch

from assay.calibrate import two_point_nll
from assay.data import load_data
from assay.papers.overlap_calibration import _kl, _noisy, simulated


def test_nearest_neighbours_meet_the_formula() -> None:
    for k, alpha in ((4, 0.5), (16, 0.75)):
        found, error = simulated(k, alpha, 4000, 11)
        assert abs(found - two_point_nll(1 - alpha / 2, k)) < 4 * error
        assert abs(found - two_point_nll(1 - alpha, k)) > 10 * error


def test_divergence_by_hand() -> None:
    posterior = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert math.isclose(_kl(posterior, logits), math.log(2))
    assert abs(_kl(posterior, (posterior + 1e-300).log())) < 1e-12


def test_noise_of_images() -> None:
    data = load_data("digits:train")
    drawn, paired = (_noisy(data, p, 3, "train") for p in (False, True))
    assert abs((drawn.y != data.y).double().mean() - 0.45) < 0.05
    assert abs((paired.y != data.y).double().mean() - 0.5) < 0.05
    replaced = {(int(a), int(b)) for a, b in zip(data.y, paired.y, strict=True) if a != b}
    assert len(replaced) == 10
