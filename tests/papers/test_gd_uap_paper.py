"""What is special to the gd-uap paper: its enumerations, and what its shams keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.papers import gd_uap as paper


def test_best_signs_is_the_optimum_over_the_box() -> None:
    assert paper.best_signs(np.array([[3.0, -4.0]]), 0.1) == pytest.approx(0.49)
    weight = np.random.default_rng(0).normal(size=(3, 4))
    inside = np.random.default_rng(1).uniform(-0.1, 0.1, (500, 4))
    assert np.square(inside @ weight.T).sum(1).max() <= paper.best_signs(weight, 0.1)


def test_best_move_tells_optima_from_other_points() -> None:
    weight = np.array([[3.0, -4.0]])
    assert paper.best_move(weight, np.array([0.1, -0.1]), 0.1) == 0
    assert paper.best_move(weight, np.array([0.1, 0.1]), 0.1) > 1e-4  # saturated, yet one entry wants back
    assert paper.best_move(weight, np.array([0.1, -0.09]), 0.1) > 1e-4  # not saturated


def test_shams_change_only_the_signs_of_the_gradient() -> None:
    delta = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = {
        s: paper._Shammed(sham=s).gradient((delta**3).sum(), delta) for s in (None, "wrong-sign", "scrambled-signs")
    }
    torch.testing.assert_close(found["wrong-sign"], -found[None])
    torch.testing.assert_close(found["scrambled-signs"].abs(), found[None].abs())
    changed = (found["scrambled-signs"] != found[None]).float().mean()
    assert 0.2 < changed < 0.8
