"""Losses in the ball against their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from assay.losses import HypCrossEntropy, HypPairwiseConfusion
from assay.nets.poincare import HyperbolicMLR, dist
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def points(n: int = 8) -> torch.Tensor:
    return 0.4 * torch.rand(n, 5, generator=torch_rng(0, "points"), dtype=torch.float64)


def test_pairs_are_the_halves_of_the_batch() -> None:
    x, c = points(), 0.3
    each = torch.stack([dist(x[i], x[i + 4], c) for i in range(4)])
    torch.testing.assert_close(HypPairwiseConfusion(c, "none")(x), each)
    torch.testing.assert_close(HypPairwiseConfusion(c, "sum")(x), each.sum())
    torch.testing.assert_close(HypPairwiseConfusion(c)(x), each.mean())
    assert float(HypPairwiseConfusion(c)(torch.cat((x[:4], x[:4])))) < 1e-12


def test_official_form_is_half_of_it_up_to_third_order() -> None:
    x, c = points(), 0.3
    near = torch.cat((x[:4], x[:4] + 1e-3))
    half = HypPairwiseConfusion(c)(near) / 2
    torch.testing.assert_close(HypPairwiseConfusion(c, reference=True)(near), half, rtol=1e-5, atol=0)
    assert float(HypPairwiseConfusion(c, reference=True)(x)) < float(HypPairwiseConfusion(c)(x)) / 2
    edge = torch.tensor([[0.999 / math.sqrt(c), 0.0], [-0.999 / math.sqrt(c), 0.0]], dtype=torch.float64)
    assert float(HypPairwiseConfusion(c, reference=True)(edge)) <= math.pi / 4 / math.sqrt(c) + 1e-9


def test_cross_entropy_is_that_of_the_logits() -> None:
    mlr, x, y = HyperbolicMLR(5, 2, 0.3).double(), points(), torch.arange(8) % 2
    torch.testing.assert_close(HypCrossEntropy(mlr)(x, y), F.cross_entropy(mlr(x), y))
    assert torch.autograd.gradcheck(lambda z: HypCrossEntropy(mlr)(z, y), (x.requires_grad_(),))


def test_bad_inputs() -> None:
    with pytest.raises(InputError, match="even"):
        HypPairwiseConfusion()(points(7))
    with pytest.raises(InputError, match="norm"):
        HypPairwiseConfusion(1.0)(2 + points())
    with pytest.raises(InputError, match="reduction"):
        HypPairwiseConfusion(reduction="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="c=0"):
        HypPairwiseConfusion(c=0.0)
    with pytest.raises(InputError, match="labels"):
        HypCrossEntropy(HyperbolicMLR(5, 2, 0.3).double())(points(), torch.arange(8))
