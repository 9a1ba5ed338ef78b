"""The exact part of the CGBA paper on drawn half-spaces, and that its shams keep what they should."""

from __future__ import annotations

import pytest
import torch

from assay.attacks import CGBA, AttackResult, Untargeted
from assay.papers import cgba as paper

CLOSED = ("projection", "circle", "paper")


@pytest.mark.parametrize("seed", range(3))
def test_closed_forms_hold_and_need_the_cosine(seed: int) -> None:
    real, sham = paper.exact(seed), paper.exact(seed, "no-cosine")
    for name in CLOSED:
        assert real[name] <= 1e-8 < 0.01 < sham[name]
    assert real["halved"] <= 1e-8


def test_the_normal_is_told_apart_from_a_random_one_by_its_answers_alone() -> None:
    """The sham spends the same queries for each step and keeps the random stream of the attack."""
    eta = torch.full((16,), 0.25, dtype=torch.float64)
    model, x = paper.half_space(eta), -0.5 * eta[None]
    ends = []
    for sham in (None, "random-normal"):
        steps: list[paper.Step] = []
        attack = paper.variant(CGBA, sham, steps)(dim_reduction=1, sigma=0.02, steps=6, bounds=(-1.0, 1.0))
        result = attack.run(model, x, Untargeted(torch.zeros(1, dtype=torch.int64)), seed=4)
        assert len(steps) == 6
        ends.append((steps[0][1], float(result.distance[0])))
    assert ends[0][0].equal(ends[1][0])
    assert abs(ends[0][1] - 0.5) < 0.03 < ends[1][1] - 0.5


def test_marks_read_the_best_distance_so_far_by_hand() -> None:
    trace = (torch.tensor([[2.0, 5.0], [90.0, 4.0], [250.0, 1.0]]), torch.tensor([[2.0, 3.0]]), torch.zeros(0, 2))
    none = torch.zeros(3)
    result = AttackResult(none, none > 0, none, none.long(), none.long(), trace)
    found = {r["at"]: (r["queries"], r["median"]) for r in paper._rows("a", result, 400, torch.tensor([5.0, 3.0, 6.0]))}
    assert found["start"] == (2, 5.0)
    assert found["100"] == (100, 4.0)
    assert found["300"] == (300, 3.0)
    assert found["1000"] == found["end"] == (400, 3.0)
