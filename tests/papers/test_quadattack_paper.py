"""What is special to the quadattack paper: its reference solver, its measure of an order, and its shams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.papers import quadattack as paper


def test_reference_projects_onto_half_spaces() -> None:
    z = np.array([0.5, -1.0, 2.0])
    got = paper.least_distance(z, np.array([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]]), np.array([12.0, -5.0]))
    expected = z + (12 - 9.5) / 25 * np.array([3.0, 0.0, 4.0])  # the second constraint is met and stays out
    assert np.allclose(got, expected, atol=1e-12)


def test_short_of_order_is_the_worst_gap() -> None:
    targets = np.array([[2, 0]])
    assert paper.short_of_order(np.array([[1.0, 0.5, 3.0]]), targets) == pytest.approx(paper.MARGIN - 0.5)
    assert paper.short_of_order(np.array([[3.0, 0.5, 1.0]]), targets) == pytest.approx(paper.MARGIN + 2.0)


def test_sorted_targets_change_nothing_for_one_target() -> None:
    real = paper.exact(1, 12, 0, None)
    assert paper.exact(1, 12, 0, "sorted-targets") == real
    assert paper.exact(4, 12, 0, "sorted-targets")["difference"] > 0.1
    assert paper.exact(4, 12, 0, "sorted-targets")["slope"] < 1e-4  # still a projection, of another order


def test_permuted_step_keeps_its_length() -> None:
    z, weight, bias, targets = paper._drawn(3, 8, 0)
    real, sham = (
        paper._Shammed(sham=name).projector(weight, bias, targets, paper.MARGIN)(z) - z
        for name in (None, "permuted-residual")
    )
    torch.testing.assert_close(real.norm(dim=1), sham.norm(dim=1))
    assert not torch.allclose(real, sham)
