"""The Frechet distance against scipy's matrix root and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from assay.generate import frechet_distance
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def test_the_formula_with_a_matrix_root() -> None:
    g = torch_rng(0, "features")
    a = torch.randn(50, 6, generator=g, dtype=torch.float64) @ torch.randn(6, 6, generator=g, dtype=torch.float64)
    b = torch.randn(70, 6, generator=g, dtype=torch.float64) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_equal_shifted_and_stretched_sets() -> None:
    a = torch.randn(40, 5, generator=torch_rng(0, "set"), dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a + 2) == pytest.approx(5 * 4)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(centred.T.cov().trace()))


def test_fewer_samples_than_features_and_one_feature() -> None:
    a = torch.randn(4, 9, generator=torch_rng(0, "few"), dtype=torch.float64)
    assert frechet_distance(a, a + 1) == pytest.approx(9)
    assert frechet_distance(a[:, :1], a[:, :1] + 1) == pytest.approx(1)


@pytest.mark.parametrize(
    "b", [torch.zeros(3, 2), torch.zeros(1, 3), torch.full((3, 3), torch.nan), torch.zeros(3, 3, 1), torch.zeros(3)]
)
def test_bad_features(b: torch.Tensor) -> None:
    with pytest.raises(InputError):
        frechet_distance(torch.eye(3), b)
