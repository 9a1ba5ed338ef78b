"""The shams of adapt-then-unlearn: as far away in another direction, and as strong with the other sign."""

from __future__ import annotations

import pytest
import torch

from assay.generate import generated
from assay.papers.adapt_then_unlearn import PAPER, _elsewhere, _modes, _Points, _slope, _undesired, _WrongSign, setup
from assay.runtime.random import derive, seeded
from assay.unlearn import AdaptThenUnlearn


def test_random_direction_keeps_the_length_of_every_tensor() -> None:
    with seeded(0, "points"):
        generator = _Points(16)
        adapted = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in generator.named_parameters()}
    other = _elsewhere(generator, adapted, 3)
    for name, p in generator.named_parameters():
        lengths = [float((w[name] - p.detach()).norm()) for w in (adapted, other)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
        assert not torch.allclose(adapted[name], other[name], atol=1e-3)


def test_the_slope_tells_repulsion_from_attraction() -> None:
    assert _slope(AdaptThenUnlearn(), 0) < 1e-8
    assert _slope(_WrongSign(), 0) == pytest.approx(2, rel=1e-6)


def test_modes_are_counted_around_their_centres() -> None:
    x = torch.tensor([[2.0, 0.1], [-2.0, 0.0], [0.0, 0.0], [2**0.5, 2**0.5]])
    assert _modes(x).tolist() == [0.25, 0.25, 0, 0, 0.25, 0, 0, 0, 0.25]
    assert _undesired(x).tolist() == [True, False, False, True]


def test_the_smoke_gan_gives_both_what_is_undesired_and_what_is_kept() -> None:
    given = setup(PAPER.scale("smoke"), derive(0, "contract"))
    shares = _modes(generated(given["pair"][0], 1500, seed=5))
    assert float(shares[:2].sum()) > 0.02
    assert int((shares[2:8] > 0.01).sum()) >= 4
    assert _undesired(given["negatives"]).all()
    assert not _undesired(given["positives"]).any()
    assert not _undesired(given["clean"]).any()
