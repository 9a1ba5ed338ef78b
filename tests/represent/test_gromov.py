"""Delta-hyperbolicity of sets whose value is known."""

import itertools

import pytest
import torch

from assay.represent import gromov_delta
from assay.represent.gromov import _relative
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def test_a_line_and_a_star_are_trees() -> None:
    line = torch.arange(20.0)[:, None]
    assert gromov_delta(line, tries=2) < 1e-12
    star = torch.full((6, 6), 2.0).fill_diagonal_(0).double()
    star[0, 1:] = star[1:, 0] = 1.0
    assert _relative(star) < 1e-12


def test_a_square_is_no_tree() -> None:
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    # of the four-point condition: half of 2 sqrt 2 - 2, over the diagonal
    assert gromov_delta(square, tries=1) == pytest.approx((2**0.5 - 1) / 2**0.5)


def test_it_is_the_triple_loop() -> None:
    x = torch.rand(9, 3, generator=torch_rng(0, "x"), dtype=torch.float64)
    d = torch.cdist(x, x)
    g = lambda i, j: float(d[i, 0] + d[0, j] - d[i, j]) / 2  # noqa: E731
    n = range(9)
    worst = max(min(g(i, k), g(k, j)) - g(i, j) for i, j, k in itertools.product(n, n, n))
    assert _relative(d) == pytest.approx(worst / float(d.max()), abs=1e-9)


def test_bad_inputs() -> None:
    with pytest.raises(InputError, match="equal"):
        gromov_delta(torch.ones(4, 2))
    with pytest.raises(InputError, match=">= 2"):
        gromov_delta(torch.rand(1, 2))
