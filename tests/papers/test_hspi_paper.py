"""What is special in the platform inference paper: its exact part, its shams, and groups dealt out at random."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.attacks.engine import Climb
from assay.papers import hspi as paper
from assay.privacy import LogitFingerprint
from assay.privacy.platform.border_inputs import Border, SideBySide
from assay.runtime.random import Draws, seeded, torch_rng


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_right_over_drawn_patterns(seed: int) -> None:
    assert paper.bits(2000, seed) == 0


def test_a_full_mantissa_under_half_precision_is_seen() -> None:
    full = torch.randn(50, 4, generator=torch_rng(0, "full"))
    assert paper.trailing({"bf16": full.bfloat16().float(), "fp16": full.half().float()}) == 0
    assert paper.trailing({"bf16": full, "fp16": full.half().float()}) > 500
    assert paper.trailing({"bf16": full.bfloat16().float(), "fp16": full}) > 500


def test_the_sham_sees_values_in_the_same_groups() -> None:
    logits = torch.randn(25, 3, generator=torch_rng(0, "values"))
    values, bits = (cls(group=5).examples(logits) for cls in (paper._Values, LogitFingerprint))
    assert (values == logits.reshape(5, 15).numpy()).all()
    assert bits.shape == (5, 15 * 32)


def test_random_steps_are_as_long_and_pay_as_much() -> None:
    with seeded(0, "net"):
        one = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    net, x, goal = SideBySide([one, one]), torch.full((4, 1, 4, 4), 0.5), Border(torch.arange(4), 2)
    results, steps = [], []
    for cls in (paper.BorderInputs, paper._RandomBorder):
        search = cls(steps=3, lr=(1e-2, 1e-2), noise=0.0).search()
        results.append(search.run(net, x, goal, seed=0))
        climb = Climb(search, net, x, goal, Draws(0, "steps", torch.arange(4)))
        climb.grad = torch.ones_like(x)
        steps.append((search.move(climb) - x) / 1e-2)
    assert torch.allclose(steps[0], torch.ones_like(x), atol=1e-4)
    assert torch.allclose(steps[1].abs(), torch.ones_like(x), atol=1e-4)
    assert 16 < (steps[1] > 0).sum() < 48
    assert results[0].queries.equal(results[1].queries)
    assert results[0].gradients.equal(results[1].gradients)
    assert results[0].gradients.tolist() == [3] * 4


def test_groups_are_dealt_out_whole_and_evenly() -> None:
    logits = {name: torch.arange(12.0)[:, None] + 100 * k for k, name in enumerate("abcd")}
    dealt = paper._dealt(logits, 3, 0)
    assert {name: len(part) for name, part in dealt.items()} == dict.fromkeys("abcd", 12)
    assert torch.cat([*dealt.values()]).flatten().sort().values.equal(torch.cat([*logits.values()]).flatten())
    for part in dealt.values():
        assert (part.unflatten(0, (-1, 3)).diff(dim=1) == 1).all()
    assert not dealt["a"].equal(logits["a"])
