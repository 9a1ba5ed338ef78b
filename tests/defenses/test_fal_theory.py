"""The report of a run of the theory against what the run itself says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from assay.defenses import FederatedAT, fal_theory_report
from assay.dynamics import TwoLayerReLU
from assay.papers.federated_at import DELTA, pairs
from assay.runtime.errors import InputError

METHOD = FederatedAT(
    loss="absolute", norm="l2", eps=0.1, attack_steps=2, rounds=6, local_steps=2, optimizer="sgd", momentum=0.0, lr=0.1
)


def test_losses_and_gaps_are_those_of_the_run() -> None:
    clients, start = pairs(4, 6, seed=0), TwoLayerReLU(6, 100, seed=0)
    report, run = fal_theory_report(METHOD, start, clients, seed=3), METHOD.run(start, clients, seed=3)
    assert report.losses == tuple(r.robust_loss for r in run.history_)
    assert report.min_loss == min(report.losses) < report.losses[0]
    assert report.delta == pytest.approx(DELTA)
    assert report.gamma == pytest.approx(DELTA * (DELTA - 0.2))
    end = run.model_
    assert isinstance(end, TwoLayerReLU)
    assert report.displacement == end.displacement() > 0
    worst = [METHOD.craft(end, c.x, c.y, c.index, c, 3) for c in clients]
    assert report.coupling_gap == pytest.approx(max(end.coupling_gap(w) for w in worst))
    assert report.gradient_gap == pytest.approx(max(end.gradient_gap(w) for w in worst))
    assert len(fal_theory_report(METHOD, start, clients, seed=3, until=report.losses[2]).losses) <= 3


def test_partners_are_apart_by_delta_with_opposite_labels() -> None:
    one, other = pairs(5, 8, seed=2)
    assert (one.x - other.x).norm(dim=1).tolist() == pytest.approx([DELTA] * 5)
    assert one.x.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
    assert (one.y - other.y).tolist() == [1] * 5


def test_other_losses_and_touching_balls_are_told() -> None:
    clients, start = pairs(3, 6, seed=0), TwoLayerReLU(6, 10)
    with pytest.raises(InputError, match="'l2'"):
        fal_theory_report(replace(METHOD, norm="linf"), start, clients, seed=0)
    with pytest.warns(RuntimeWarning, match="meet"):
        fal_theory_report(replace(METHOD, eps=DELTA / 2, rounds=1), start, clients, seed=0)
