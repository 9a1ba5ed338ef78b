"""What the shams of WEAT keep and what they take away."""

from __future__ import annotations

import torch

from assay.data import load_data
from assay.losses import WEATLoss
from assay.nets import MLP
from assay.papers import weat as paper
from assay.runtime.random import seeded, torch_rng
from assay.training import State


def test_the_dropped_reciprocal_reverses_the_order_of_the_weights_and_keeps_the_attack() -> None:
    z = 3 * torch.randn(50, 10, generator=torch_rng(0, "logits"))
    real, sham = WEATLoss().weights(z), paper._DroppedReciprocal().weights(z)
    torch.testing.assert_close(real * sham, torch.ones(50))
    assert torch.equal(real.argsort(), sham.argsort(descending=True))
    trainers = paper._trainers(paper.PAPER.scale("claim"))
    real_arm, sham_arm = trainers["weat"], trainers["dropped"]
    assert real_arm.plan() == sham_arm.plan()
    data = load_data("digits:train")
    with seeded(0, "net"):
        model = MLP()
    batch = data.batch(torch.arange(16))
    found = [t.worst(model, batch, State(0, data, 1)) for t in (real_arm, sham_arm)]  # type: ignore[attr-defined]
    assert torch.equal(*found)


def test_errors_vanish_and_each_sham_shows_in_the_checks_that_name_it() -> None:
    assert max(paper.exact(3, None).values()) < 1e-11
    dropped, plus = paper.exact(3, "dropped-reciprocal"), paper.exact(3, "plus-logsumexp")
    assert dropped["released"] > 1
    assert max(v for k, v in dropped.items() if k != "released") < 1e-11
    assert min(plus["cross_entropy"], plus["divergence"]) > 1
    assert max(plus["released"], plus["trades"]) < 1e-11
