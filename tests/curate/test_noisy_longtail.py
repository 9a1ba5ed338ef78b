"""Exact checks of long-tailed subsets with wrong labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.curate import flip_labels, flip_matrix, make_noisy_longtail, redraw_matrix
from assay.runtime.errors import InputError

Y = torch.arange(10).repeat(200)


@given(st.integers(1, 60), st.floats(0, 0.9), st.integers(0, 9))
def test_counts_and_the_exact_number_of_wrong_labels(ratio: int, noise: float, seed: int) -> None:
    rows, noisy = make_noisy_longtail(Y, ratio, noise, largest=150, seed=seed)
    sizes = [max(int(150 * (1 / ratio) ** (k / 9)), 1) for k in range(10)]
    assert torch.bincount(Y[rows], minlength=10).tolist() == sizes
    assert int((noisy != Y[rows]).sum()) == int(noise * sum(sizes))
    assert (rows.diff() > 0).all()


def test_assumption_mode_meets_its_rate() -> None:
    rows, noisy = make_noisy_longtail(Y.repeat(10), 10, 0.4, "assumption", seed=3)
    n = len(rows)
    share = torch.bincount(Y.repeat(10)[rows]).double() / n
    rate = 0.4 * (1 - float(share.square().sum()))
    wrong = float((noisy != Y.repeat(10)[rows]).double().mean())
    assert abs(wrong - rate) <= 3 * (rate * (1 - rate) / n) ** 0.5


@pytest.mark.parametrize("mode", ["imb", "assumption"])
def test_matrices(mode: str) -> None:
    counts = torch.tensor([50, 20, 5])
    t = flip_matrix(counts, 0.3, mode)  # type: ignore[arg-type]
    assert torch.allclose(t.sum(1), torch.ones(3).double(), atol=1e-15)
    expected = 0.3 * 20 / 25 if mode == "imb" else 0.3 * 20 / 75
    assert float(t[0, 1]) == pytest.approx(expected)
    assert float(t[0, 0]) == pytest.approx(0.7 if mode == "imb" else 0.7 + 0.3 * 50 / 75)


def test_labels_follow_the_chances_and_the_seed() -> None:
    y, chances = torch.zeros(6000, dtype=torch.int64), redraw_matrix(torch.tensor([10, 60, 30]))
    noisy = flip_labels(y, 0.5, chances, exact=True, seed=1)
    found = torch.bincount(noisy, minlength=3)
    assert int(found[0]) == 3000
    assert abs(int(found[1]) - 2000) < 3 * (3000 * 2 / 9) ** 0.5
    assert torch.equal(noisy, flip_labels(y, 0.5, chances, exact=True, seed=1))
    assert not torch.equal(noisy, flip_labels(y, 0.5, chances, exact=True, seed=2))
    assert not y.any()


def test_bad_input() -> None:
    for options in ({"noise": 1.0}, {"noise": -0.1}, {"mode": "uniform"}, {"ratio": 0.5}, {"largest": 500}):
        with pytest.raises(InputError):
            make_noisy_longtail(Y, **{"ratio": 5, "noise": 0.2, "seed": 0, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError):
        redraw_matrix(torch.tensor([3, 0]))
    for y, ratio in ((Y[:0], 5.0), (Y, float("nan"))):
        with pytest.raises(InputError, match="ratio"):
            make_noisy_longtail(y, ratio, 0.2, seed=0)
    for chances in (torch.rand(2, 3), torch.tensor([[0.0, 0], [1, 0]]), torch.tensor([[0.0, -1], [1, 0]])):
        with pytest.raises(InputError, match="chances"):
            flip_labels(torch.tensor([0, 1]), 0.5, chances, exact=True, seed=0)
