"""What the shams of the common weakness attack keep and what they take away."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import Ensemble, Linf, Untargeted
from assay.attacks.engine import Climb
from assay.papers import cwa as paper
from assay.runtime.random import Draws


@pytest.mark.parametrize(("sham", "slope"), [(None, 3), ("stuck-index", 2), ("simultaneous-pass", 2)])
def test_order_of_what_the_expansion_leaves(sham: str | None, slope: float) -> None:
    for seed in range(2):
        assert paper.residual_slope(paper.METHODS[sham]["cwa"], seed) == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize("sham", ["stuck-index", "simultaneous-pass"])
@pytest.mark.parametrize("arm", ["cse", "cwa"])
def test_shams_spend_as_much_and_go_elsewhere(sham: str, arm: str) -> None:
    models, x, y = paper._smooth(0)
    spent, ends = [], []
    for name in (None, sham):
        attack = paper.METHODS[name][arm](ball=Linf(0.5), bounds=(-9.0, 9.0), steps=2, inner_step=0.1)
        spent.append(attack.run(models, x, Untargeted(y), seed=0).gradients)
        run = Climb(attack, Ensemble(models), x, Untargeted(y), Draws(0, "t", torch.arange(len(x))))
        ends.append(attack.sweep(run, x))
    assert torch.equal(*spent)
    assert not torch.equal(*ends)


def test_the_first_model_is_all_that_a_stuck_pass_sees() -> None:
    models, x, y = paper._smooth(0)
    attack = paper.METHODS["stuck-index"]["cse"](ball=Linf(9.0), bounds=(-99.0, 99.0), inner_step=0.1, momentum=0)
    ends = []
    for last in models[1:]:
        run = Climb(attack, Ensemble([models[0], last]), x, Untargeted(y), Draws(0, "t", torch.arange(len(x))))
        ends.append(attack.sweep(run, x))
    assert torch.equal(*ends)
