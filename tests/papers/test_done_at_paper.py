"""The paper's references on other seeds, and what its shams keep and lose."""

import numpy as np
import pytest
import torch

from assay.losses import dro_weights
from assay.papers import done_at as paper

SMOKE = paper.PAPER.scale("smoke")


@pytest.mark.parametrize("seed", range(3))
def test_exact_parts_hold_on_other_seeds(seed: int) -> None:
    found = paper._weights(seed, None) | paper._hypergradients(seed, None)
    assert max(found["weights_off"], found["value_off"]) < 1e-6
    assert max(found["whole_off"], found["diagonal_off"]) < 1e-5
    wrong = paper._hypergradients(seed, "wrong-sign-implicit")
    assert min(wrong["whole_off"], wrong["diagonal_off"]) > 1e-3


def test_the_maximiser_is_no_softmax_in_disguise() -> None:
    """Ascent ends where no feasible direction rises: all slopes are equal."""
    losses = np.random.default_rng(0).gamma(2.0, size=8)
    w = paper.ascended(losses, 0.7)
    slope = losses - 0.7 * (np.log(w) + 1)
    assert np.ptp(slope) < 1e-9
    assert w.sum() == pytest.approx(1)


def test_permuted_weights_are_the_same_weights() -> None:
    weights = dro_weights(torch.rand(64), 0.5)
    moved = paper._permuted(weights)
    assert torch.equal(moved.sort().values, weights.sort().values)
    assert not torch.equal(moved, weights)


def test_the_wrong_sign_keeps_the_value_and_turns_the_term() -> None:
    given = {"data": paper._images()[0][:16]}
    model = paper.MLP((1, 8, 8), 10, (8,))
    batch = given["data"].batch(torch.arange(16))
    delta = paper.log_barrier_attack(model, batch.x, batch.y, paper.EPS, paper.C, 2, 0.5, seed=0)
    plan = paper._plan(SMOKE)
    arms = [kind(r=1.0, c=paper.C, **plan) for kind in (paper.DONE, paper._WrongSign)]
    first = paper.DONE(r=1.0, c=paper.C, implicit=False, **plan)
    found = [m.surrogates(model, batch, delta, (0.0, 1.0))[1] for m in (*arms, first)]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    real, wrong, plain = (torch.autograd.grad(s.sum(), model.head.weight)[0] for s in found)
    assert torch.allclose(real + wrong, 2 * plain, atol=1e-4)
    assert not torch.allclose(real, wrong, atol=1e-4)
