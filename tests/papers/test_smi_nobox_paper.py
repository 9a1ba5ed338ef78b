"""What is special to the smi-nobox paper: its unrolled recursion, and what its shams keep."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import NoBoxLoss, SMIGradient, motion_responses
from assay.attacks.motion.nobox_loss import Dissimilar
from assay.papers import smi_nobox as paper

F64 = torch.float64


def test_the_unrolled_slope_by_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    x, beta = torch.randn(2, 7, generator=g, dtype=F64), torch.randn(2, 2, 7, generator=g, dtype=F64)
    found, step = paper.unrolled_slope(x, beta, 2), 1e-6
    for channel, frame in ((0, 0), (1, 3), (0, 5), (1, 6)):
        ends = []
        for sign in (1, -1):
            z = x.clone()
            z[channel, frame] += sign * step
            for s in (frame + 1, frame + 2):
                if s < 7:
                    for j in (1, 2):
                        if s - j >= frame:
                            z[channel, s] += beta[channel, j - 1, s] * (z[channel, s - j] - x[channel, s - j])
            ends.append(paper.clip_loss(z[None]))
        assert float(found[channel, frame]) == pytest.approx(float((ends[0] - ends[1]) / (2 * step)), abs=1e-7)


@pytest.mark.parametrize("order", [1, 2])
def test_the_informed_gradient_is_the_slope(order: int) -> None:
    assert paper.slope_error(SMIGradient(order=order), seed=3) < 1e-12


def test_reversed_shift_adds_the_frames_before() -> None:
    g = torch.Generator().manual_seed(0)
    grad, responses = torch.randn(1, 1, 6, generator=g), torch.randn(1, 2, 1, 6, generator=g)
    found = paper._ReversedShift().combine(grad, responses)
    expected = grad.clone()
    for k in (1, 2):
        expected[..., k:] += responses[:, k - 1, :, k:] * grad[..., :-k]
    torch.testing.assert_close(found, expected)
    assert paper.slope_error(paper._ReversedShift(), seed=0) > 0.1


def test_wrong_sign_only_turns_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    features, references = torch.randn(4, 8, generator=g), torch.randn(4, 5, 8, generator=g)
    goal = Dissimilar(references, torch.zeros(4), torch.zeros(4))
    torch.testing.assert_close(paper._WrongSign().of(features, goal), -NoBoxLoss().of(features, goal))


def test_the_process_is_the_one_whose_coefficients_are_known() -> None:
    assert paper.coefficient_error((16, 2000), 0) < 0.03
    assert paper.ols_error(0) < 1e-8
    constant = torch.tensor(paper.BETA, dtype=F64)[None, :, None].expand(1, 2, 5)
    responses = motion_responses(constant)
    assert responses[0, 0].tolist() == pytest.approx([0.6, 0.6, 0.6, 0.6, 0])
    assert responses[1, 0].tolist() == pytest.approx([0.06, 0.06, 0.06, 0, 0])
