"""Calibration measures against values worked out by hand."""

import numpy as np
import pytest
import torch

from assay.calibrate import adaptive_ece, brier, classwise_ece, ece, nll, reliability
from assay.runtime.errors import InputError

P = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
Y = np.array([0, 1, 1, 1])


def test_by_hand() -> None:
    assert ece(P, Y) == pytest.approx(0.5 * 0.4 + 0.5 * 0.3)
    assert reliability(P, Y).mce == pytest.approx(0.4)
    assert adaptive_ece(P, Y, bins=2) == pytest.approx(0.35)
    assert nll(P, Y) == pytest.approx(-np.log([0.9, 0.1, 0.7, 0.7]).mean())
    assert brier(P, Y) == pytest.approx(2 * np.mean([0.01, 0.81, 0.09, 0.09]))
    assert classwise_ece(P, Y) == pytest.approx(0.35)


def test_extremes() -> None:
    sure = np.eye(3)[[0, 1, 2]]
    assert (ece(sure, np.arange(3)), nll(sure, np.arange(3)), brier(sure, np.arange(3))) == (0, 0, 0)
    assert (ece(sure, np.array([1, 2, 0])), brier(sure, np.array([1, 2, 0]))) == (1, 2)
    assert np.isfinite(nll(sure, np.array([1, 2, 0])))


def test_reliability_adds_up() -> None:
    p = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    y = torch.arange(500) % 4
    bins = reliability(p, y)
    assert bins.count.sum() == 500
    assert bins.ece == pytest.approx(ece(p, y))


def test_bad_input() -> None:
    for p, y in ((P * 2, Y), (P[:0], Y[:0]), (P, Y + 1), (P, Y[:2]), (np.full((4, 2), np.nan), Y), (P, Y * 1.0)):
        with pytest.raises(InputError):
            ece(p, y)


def test_low_precision_and_graphs_are_taken() -> None:
    p = torch.tensor([[0.75, 0.25], [0.5, 0.5]], requires_grad=True)
    for dtype in (torch.bfloat16, torch.float16):
        assert ece(p.to(dtype), np.array([0, 1])) == ece(p.detach(), np.array([0, 1]))
