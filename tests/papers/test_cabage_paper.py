"""What is special to the cabage paper: its enumeration, its checks, and what its shams keep."""

from __future__ import annotations

import numpy as np
import torch

from assay.papers import cabage as paper
from assay.privacy import SelectiveQuery

SMOKE = paper.PAPER.scale("smoke")
PROBS = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).double()
PROBS /= PROBS.sum(1, keepdim=True)


def test_the_enumeration_on_a_table_made_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.51, 0.49]])
    assert paper.enumerated(probs, 1) == {4}
    assert paper.enumerated(probs, 2) == {3, 4}
    assert paper.enumerated(probs, 4) == {1, 2, 3, 4}


def test_shams_choose_as_many_of_the_same_pool() -> None:
    generator = torch.Generator()
    chosen = {s: paper.method(SMOKE, s).choose(PROBS, generator) for s in (None, *paper.PAPER.shams)}
    assert {len(set(rows.tolist())) for rows in chosen.values()} == {SMOKE["batch"]}
    certain = {s: float(PROBS[rows].amax(1).mean()) for s, rows in chosen.items()}
    assert certain[None] < certain["in-name-only"] < certain["easiest-first"]
    again = paper.method(SMOKE, "in-name-only").choose(PROBS, generator)
    assert again.equal(chosen["in-name-only"])


def test_shams_keep_costs_and_steps() -> None:
    real = paper.method(SMOKE, None)
    for sham in paper.PAPER.shams:
        other = paper.method(SMOKE, sham)
        for name in ("cost", "replay", "pool_factor", "n_generators", "n_clones", "batch", "lr_clone", "lr_gen"):
            assert getattr(other, name) == getattr(real, name), name


def test_generators_in_name_only_are_the_same() -> None:
    twins, others = (paper.method(SMOKE, s).made((1, 8, 8), 0).members for s in ("in-name-only", None))
    assert twins[0].start.weight.equal(twins[1].start.weight)
    assert not others[0].start.weight.equal(others[1].start.weight)


def test_checks_tell_the_method_from_its_shams() -> None:
    assert paper.selection_errors(SelectiveQuery(), 100, 0) == 0
    assert paper.selection_errors(paper._RandomQuery(), 100, 0) > 0.5
    assert paper.selection_errors(paper._EasiestQuery(), 100, 0) > 0.5
    assert paper.replay_fit(1.0, 0.05, 50_000, 0) > 1e-4
    assert paper.replay_fit(0.0, 0.05, 50_000, 0) < 1e-9
    assert paper.replay_fit(2.0, 0.05, 50_000, 0) < 1e-9
    assert paper.growth_difference(0) < 1e-6
