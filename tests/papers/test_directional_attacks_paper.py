"""What is special about the experiment on directional attacks: its problems, its budget, and its shams."""

from __future__ import annotations

import pytest
import torch

from assay.papers import directional_attacks as paper
from assay.papers.model import Scale, Table

SCALE = Scale("smoke", 1, {"epochs": 5, "starts": 3, "early": 1, "evals": 100, "maps": 3, "attacks": False})


@pytest.fixture(scope="module")
def problems() -> list:
    return paper._problems(SCALE, 5)


def test_starts_are_the_nearest_training_points_with_the_margin(problems: list) -> None:
    assert len(problems) == 4
    x = paper._tumours().x.double()
    for p in problems:
        with torch.no_grad():
            y = p.phi(torch.cat((p.query[None], p.start[None], x)))
        assert y[0, 0] <= 0  # the network gives the query to the other class
        assert p.shortfall(y[1]) <= 0
        assert torch.equal(y[1, 1:], p.start)
        there = x[y[2:, 0] >= paper.MARGIN]
        assert float(-p.nearness(y[1])) == pytest.approx(float((there - p.query).square().sum(1).min()))


@pytest.mark.parametrize("arm", ["dfo", "attacks only", "hybrid"])
def test_arms_have_the_same_start_and_the_same_budget(problems: list, arm: str) -> None:
    p = problems[0]
    result = paper._solve(arm, p, 100, seed=1)
    assert result.evals <= 100
    assert result.at(1) == pytest.approx(float(-(p.start - p.query).square().sum()))
    assert p.shortfall(p.phi(result.x[None])[0]) <= 0
    assert float(-(result.x - p.query).square().sum()) == pytest.approx(result.value)


def test_a_longer_budget_goes_the_same_way(problems: list) -> None:
    short, long = (paper._solve("hybrid", problems[0], k, seed=1) for k in (100, 160))
    assert short.value == long.at(100)


def test_the_closed_form_is_met_and_the_shams_miss_it() -> None:
    assert paper.linear(3, 0, None) < 1e-12
    assert paper.linear(3, 0, "wrong-sign") > 1
    assert paper.linear(3, 0, "random-direction") > 0.5


@pytest.mark.parametrize("sham", paper.PAPER.shams)
def test_shams_keep_radius_and_charge(sham: str) -> None:
    x, u = torch.zeros(6, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    phi = torch.nn.utils.skip_init(torch.nn.Linear, 6, 4, dtype=torch.float64)
    torch.nn.init.eye_(phi.weight)
    real, shammed = paper._Operator(steps=5), paper._Operator(steps=5, sham=sham)
    assert real.gradients == shammed.gradients == 5
    moved = shammed(phi, x, u, 0.3, seed=1)
    assert float(moved.norm()) == pytest.approx(0.3)
    assert not torch.allclose(moved, real(phi, x, u, 0.3))
    assert (u @ phi.weight @ moved < 0) or sham != "wrong-sign"


def test_attacks_alone_are_an_arm_and_a_supporting_claim_where_the_scale_has_them() -> None:
    sizes = {"epochs": 2, "starts": 2, "early": 0, "evals": 60, "maps": 1, "attacks": True}
    scale = Scale("gpu", 1, sizes)
    table = Table.joined({0: paper.experiment(scale, 0, paper.setup(scale, 0), None)})
    alone = [c for c in paper.claims(table) if "attacks alone" in c.text]
    assert len(alone) == 1
    assert not alone[0].key
    ours, theirs = (table.values("distance", arm=a, evals=1000) for a in ("hybrid", "attacks only"))
    assert alone[0].observed == pytest.approx(1 - ours / theirs)
    assert paper.figure(table).axes
