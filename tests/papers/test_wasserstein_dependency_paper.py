"""What the paper on the Wasserstein dependency decides by: the shams change the penalty and nothing else."""

from __future__ import annotations

import torch

from assay.nets import MLP
from assay.papers import wasserstein_dependency as paper
from assay.runtime.random import seeded


def test_shams_keep_the_rest_of_the_loss() -> None:
    with seeded(0, "nets"):
        phi, psi = MLP((6,), 4, (8,)), MLP((6,), 4, (8,))
        x, y = torch.rand(2, 10, 6)
    logs = {}
    for name, rule in paper.RULES.items():
        with seeded(0, "eps"):
            logs[name] = rule(1.0)(phi, psi, x, y)[1]
    assert len({row["nce"] for row in logs.values()}) == 1
    assert len({row["gp"] for row in logs.values()}) == 3


def test_the_measure_of_independent_samples_is_its_floor() -> None:
    found = paper.dependency(0, 64, 5)
    assert 0.7 < found["floor"] < 1.3
    assert found["learned"] < 1
