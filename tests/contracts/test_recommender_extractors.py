"""What every exported extractor of recommenders promises; a new one joins by being exported."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import assay.recommend as room
from assay.recommend import SASRec, agreement_at_k, padded, train_next_item
from assay.recommend.base import Extractor
from assay.runtime.errors import BudgetError, InputError
from assay.runtime.random import numpy_rng, seeded
from assay.subject import Oracle
from assay.training import Plan

ITEMS, K, LENGTH = 30, 12, 6


def exported() -> list[type[Extractor]]:
    found = [getattr(room, name) for name in room.__all__]
    methods = [c for c in found if isinstance(c, type) and getattr(c, "kind", None) == "extractor"]
    return [c for c in methods if not c.__dict__.get("contract", False)]


def small(cls: type[Extractor]) -> Extractor:
    """The extractor at a size that suits a test."""
    return cls(  # type: ignore[call-arg]
        n_items=ITEMS,
        k=K,
        max_len=LENGTH,
        n_generate=40,
        K=5,
        steps=60,
        every=30,
        batch_size=16,
        lr=1e-2,
        user_epochs=2,
    )


EXTRACTORS = [pytest.param(small(cls), id=cls.__name__) for cls in exported()]


@pytest.fixture(scope="module")
def setting() -> tuple[SASRec, list[Tensor], Tensor]:
    rng = numpy_rng(0, "users")
    steps = rng.integers(1, 4, (60, 12)).cumsum(1) + rng.integers(0, ITEMS, (60, 1))
    sequences = [torch.from_numpy(row % ITEMS + 1) for row in steps]
    with seeded(0, "init"):
        start = SASRec(ITEMS, LENGTH, 16, 1, 2)
    victim = train_next_item(start, sequences, Plan(epochs=15, batch_size=16, lr=1e-2), seed=0)
    assert isinstance(victim, SASRec)
    return victim, sequences[:10], padded(sequences[10:], LENGTH)


def test_the_room_exports_extractors() -> None:
    assert {"FewShotExtraction"} <= {c.__name__ for c in exported()}


@pytest.mark.parametrize("method", EXTRACTORS)
def test_same_seed_same_copy_and_nothing_is_touched(method: Extractor, setting) -> None:
    victim, few, rows = setting
    kept, weights, random = copy.deepcopy(few), copy.deepcopy(victim.state_dict()), torch.get_rng_state()
    short = replace(method, steps=8, every=4)
    first, again = (short.fit(lambda r: victim.recommend(r, K), few, seed=3) for _ in range(2))
    assert first.surrogate_.recommend(rows, 5).equal(again.surrogate_.recommend(rows, 5))
    assert first.history_ == again.history_
    assert len(first.history_) == 2
    assert torch.get_rng_state().equal(random)
    assert all(a.equal(b) for a, b in zip(few, kept, strict=True))
    assert all(v.equal(weights[k]) for k, v in victim.state_dict().items())
    other = short.fit(lambda r: victim.recommend(r, K), few, seed=4)
    assert other.history_ != first.history_
    copied = short.extract(lambda r: victim.recommend(r, K), few, seed=3)
    assert copied.recommend(rows, 5).equal(first.surrogate_.recommend(rows, 5))


@pytest.mark.parametrize("method", EXTRACTORS)
def test_queries_are_counted_and_budgets_kept(method: Extractor, setting) -> None:
    victim, few, _ = setting
    oracle, short = Oracle(lambda r: victim.recommend(r, K)), replace(method, steps=1)
    found = short.fit(oracle, few, seed=0)
    assert found.queries_ == oracle.queries == sum(map(len, few)) + 40 * LENGTH
    with pytest.raises(BudgetError):
        short.fit(Oracle(lambda r: victim.recommend(r, K), budget=oracle.queries - 1), few, seed=0)


@pytest.mark.parametrize("method", EXTRACTORS)
def test_agrees_with_the_victim_more_than_its_most_frequent_items(method: Extractor, setting) -> None:
    victim, few, rows = setting
    theirs = victim.recommend(rows, 5)
    frequent = torch.bincount(theirs.flatten(), minlength=ITEMS + 1).topk(5).indices.expand(len(rows), -1)
    copied = method.extract(lambda r: victim.recommend(r, K), few, seed=0)
    mine = agreement_at_k(copied.recommend(rows, 5), theirs, 5).mean()
    assert mine >= agreement_at_k(frequent, theirs, 5).mean() + 0.2


@pytest.mark.parametrize("method", EXTRACTORS)
def test_bad_input(method: Extractor, setting) -> None:
    victim, few, _ = setting

    def asked(rows: Tensor) -> Tensor:
        return victim.recommend(rows, K)

    cases = [([], asked), ([torch.tensor([1, ITEMS + 1])], asked), ([torch.tensor([0, 2])], asked)]
    cases += [([torch.tensor([1.0, 2.0])], asked), ([torch.tensor([3])], asked)]
    cases += [(few, lambda r: asked(r)[:, :3]), (few, lambda r: asked(r) + ITEMS), (few, lambda r: asked(r) * 0 + 1)]
    for sequences, bad in cases:
        with pytest.raises(InputError) as caught:
            method.fit(bad, sequences, seed=0)
        assert "\n" not in str(caught.value)
    for option in ({"k": ITEMS}, {"K": K + 1}, {"steps": 0}, {"n_items": 5}):
        with pytest.raises(InputError) as caught:
            replace(method, **option)
        assert "\n" not in str(caught.value)
