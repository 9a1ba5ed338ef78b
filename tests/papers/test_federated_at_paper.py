"""What is special to the paper on federated adversarial learning: its exact checks, and what the shams keep."""

from __future__ import annotations

import pytest

from assay.attacks import PGD, Linf
from assay.papers import federated_at as paper


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_checks_hold_and_tell_the_shams_apart(seed: int) -> None:
    real, stale, noise = (paper.exact(seed, sham) for sham in (None, *paper.PAPER.shams))
    assert real["central"] == 0
    assert real["calls"] == 1
    assert real["unrolled"] < 1e-12
    assert real["linear"] < 1e-12
    # With one local step a stale attack is a fresh one.
    assert stale["central"] == 0
    assert stale["calls"] == 0.5
    assert min(stale["unrolled"], noise["unrolled"], noise["central"]) > 1e-4


def test_shams_keep_the_budget() -> None:
    attack = PGD(ball=Linf(0.1), steps=2, early_stop=False)
    real, stale, noise = (paper.method(s, attack, rounds=3, **paper.SGD) for s in (None, *paper.PAPER.shams))
    assert real.plan() == stale.plan() == noise.plan()
    assert real.local_steps == stale.local_steps == noise.local_steps
    assert noise.attack is not None
    assert noise.attack.ball == attack.ball
