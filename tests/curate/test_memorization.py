"""Memorisation and influence from subsets, against closed forms and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.curate import influence_scores, memorization_of, memorization_scores, subset_masks
from assay.papers.long_tail_memorization import nearest
from assay.runtime.errors import InputError


def points(n: int = 40) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=g), torch.randint(3, (n,), generator=g)


def majority(x: Tensor, y: Tensor, at: Tensor, *, seed: int) -> Tensor:
    return torch.full((len(at),), int(y.bincount().argmax()))


def test_leave_one_out_nearest_neighbour_is_closed_form() -> None:
    x, y = points()
    found = memorization_scores(nearest, x, y, masks=~torch.eye(40, dtype=torch.bool))
    other = torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(found.mem_, (y[other] != y).double())
    assert (found.se_ == 0).all()


def test_by_loops_with_standard_errors() -> None:
    g = torch.Generator().manual_seed(1)
    correct, masks = torch.rand(30, 8, generator=g) < 0.6, torch.rand(30, 8, generator=g) < 0.7
    mem, se = memorization_of(correct, masks)
    infl = influence_scores(correct, masks)
    for i in range(8):
        inside, outside = (correct[m].double() for m in (masks[:, i], ~masks[:, i]))
        assert float(mem[i]) == pytest.approx(float(inside[:, i].mean() - outside[:, i].mean()))
        spread = sum(part[:, i].var(correction=0) / len(part) for part in (inside, outside))
        assert float(se[i]) == pytest.approx(float(spread**0.5))
        assert torch.allclose(infl[i], inside.mean(0) - outside.mean(0))
    assert torch.allclose(infl.diagonal(), mem)


def test_masks_hold_the_share_asked_for_at_random() -> None:
    masks = subset_masks(50, 400, 0.7, seed=0)
    assert (masks.sum(1) == 35).all()
    assert ((masks.double().mean(0) - 0.7).abs() < 4 * (0.21 / 400) ** 0.5).all()
    assert torch.equal(masks, subset_masks(50, 400, 0.7, seed=0))
    assert not torch.equal(masks, subset_masks(50, 400, 0.7, seed=1))


def test_rare_labels_are_memorised_and_constants_are_not() -> None:
    x, y = torch.rand(60, 2), torch.zeros(60).long()
    y[7] = 1
    found = memorization_scores(nearest, x, y, T=40, test=(x[:5] + 1e-4, y[:5]))
    assert found.mem_[7] == 1
    assert found.mem_.argmax() == 7
    assert found.infl_ is not None
    assert found.infl_.shape == (60, 5)
    state = torch.get_rng_state()
    assert (memorization_scores(majority, x, y, T=40).mem_ == 0).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input() -> None:
    x, y = points()
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="rate"):
            memorization_scores(nearest, x, y, rate=rate)
    with pytest.raises(InputError, match="raise T"):
        memorization_scores(nearest, x, y, T=2)
    for bad in (torch.ones(3, 7, dtype=torch.bool), torch.ones(3, 40), torch.zeros(3, 40, dtype=torch.bool)):
        with pytest.raises(InputError, match="masks"):
            memorization_scores(nearest, x, y, masks=bad)
    with pytest.raises(InputError, match="n rows"):
        memorization_scores(nearest, x, y[:5])
    with pytest.raises(InputError, match="3 test points, 2 labels"):
        memorization_scores(nearest, x, y, test=(x[:3], y[:2]))
    for shape in ((40, 1), (40, 3), ()):
        with pytest.raises(InputError, match="expected labels"):
            memorization_scores(lambda x, y, at, seed, shape=shape: torch.zeros(shape).long(), x, y)
    masks = subset_masks(6, 20, 0.5, seed=0)
    with pytest.raises(InputError, match="as the masks"):
        memorization_of(torch.ones(20, 1, dtype=torch.bool), masks)
    with pytest.raises(InputError, match="a row for each mask"):
        influence_scores(torch.ones(19, 4, dtype=torch.bool), masks)
