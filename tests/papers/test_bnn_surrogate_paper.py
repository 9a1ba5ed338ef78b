"""What the shams of bnn-surrogate change, and its exact checks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.attacks import CyclicalSGLD, Langevin
from assay.papers.bnn_surrogate import (
    PAPER,
    RULES,
    _cycles,
    _FrozenNoise,
    _MissingTwo,
    claims,
    cost_gap,
    experiment,
    light_gap,
    official_gap,
    schedule_gap,
    setup,
    variance_ratio,
)
from assay.papers.model import Scale, Table
from assay.runtime.random import seeded


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_checks_hold_and_see_each_sham(seed: int) -> None:
    assert 0.9 < variance_ratio(Langevin, seed) < 1.1
    assert max(schedule_gap(seed), light_gap(seed)) < 1e-9
    assert cost_gap(seed) == 0
    assert max(official_gap(CyclicalSGLD, alpha, seed) for alpha in (1.0, 0.3)) < 1e-9
    for sham in RULES:
        if sham is not None:
            assert not 0.9 < variance_ratio(RULES[sham].sampler, seed) < 1.1
            assert official_gap(RULES[sham], 1.0, seed) > 1e-3


def moves(sampler: type[Langevin], **options: int) -> Tensor:
    """Six steps from 0 with no gradient: what the noise alone does, (6, 4)."""
    theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    made, seen = sampler([theta], 0.1, size=5, **options), [theta.detach().clone()]
    with seeded(0, "moves"):
        for _ in range(6):
            theta.grad = torch.zeros_like(theta)
            made.step()
            seen.append(theta.detach().clone())
    return torch.stack(seen).diff(dim=0)


def test_one_sham_shrinks_the_noise_and_the_other_repeats_it_within_a_cycle() -> None:
    real, small, frozen = moves(Langevin), moves(_MissingTwo), moves(_FrozenNoise)
    torch.testing.assert_close(real, small * 2**0.5)
    torch.testing.assert_close(frozen, real[:1].expand(6, 4))
    cycled = moves(_FrozenNoise, cycle=3)
    rates = torch.tensor([1.0, 0.75, 0.25], dtype=torch.float64).sqrt()[:, None]
    torch.testing.assert_close(cycled[:3] / rates, cycled[:1].expand(3, 4))
    torch.testing.assert_close(cycled[3:] / rates, cycled[3:4].expand(3, 4))
    assert not torch.allclose(cycled[0], cycled[3])


def test_heat_scales_the_deviation_of_the_official_noise() -> None:
    sizes = {"cycles": 2, "each": 3, "samples": 1, "lr": 0.1}
    official = CyclicalSGLD().heat(3500)
    for heat in (1.0, 0.1):
        options = _cycles(Scale("claim", 5, sizes), 3500, heat)
        assert CyclicalSGLD(**options).heat(3500) == pytest.approx(heat**2 * official)


def test_the_comparison_of_the_gpu_scale_runs() -> None:
    """At its scale, but for few small images and one epoch."""
    sizes = {
        **PAPER.scale("gpu").sizes,
        "data": "digits:train",
        "train": 48,
        "images": 40,
        "steps": 2,
        "targets": 1,
        "learn": 1,
    }
    scale = Scale("gpu", 5, {**sizes, "cycles": 2, "each": 2, "samples": 1, "lr": 0.05, "curve": (1, 2)})
    table = Table.joined({k: experiment(scale, k, setup(scale, k), None) for k in (0,)})
    found = claims(table)
    assert sum(c.key for c in found) == 6
    assert 1 <= table.per_seed("worth")[0] <= 2
    assert {"SWAG", "one network", "2 networks", "snapshots", "cSGLD"} <= {r["arm"] for r in table.rows}
