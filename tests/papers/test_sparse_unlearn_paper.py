"""The sham of sparse-unlearn pulls as hard, at others' signs; the influence check is not the method's own code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.papers.sparse_unlearn import PENALISED, _influence_gap, _net, _Shuffled
from assay.runtime.random import seeded


def signs(method: object, model: nn.Module) -> torch.Tensor:
    with seeded(0, "shuffle"):
        loss = method.norm(model)  # type: ignore[attr-defined]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_shuffled_subgradient_has_the_same_entries_elsewhere() -> None:
    model = _net(1, 10, (8, 8), 0)
    real, moved = signs(PENALISED, model), signs(_Shuffled(), model)
    assert torch.equal(real, torch.cat([p.detach().sign().flatten() for p in model.parameters()]))
    assert torch.equal(real.sort().values, moved.sort().values)
    assert moved.norm() == pytest.approx(float(real.norm()))
    assert 0.2 < float((real != moved).float().mean()) < 0.8


def test_influence_gap_tells_the_solve_from_the_recursion() -> None:
    assert _influence_gap(3, None) < 1e-10
    assert _influence_gap(3, "running-o") > 0.1
