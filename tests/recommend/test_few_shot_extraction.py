"""What is special to few-shot extraction: its arms, its surrogates, and lists that repeat items."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from assay.recommend import NARM, BERT4Rec, FewShotExtraction, SASRec
from assay.runtime.errors import InputError
from assay.runtime.random import seeded

ITEMS, K = 25, 8
METHOD = FewShotExtraction(
    n_items=ITEMS, k=K, max_len=5, n_generate=12, K=4, steps=6, every=3, batch_size=8, lr=1e-2, user_epochs=1
)


def circle(rows: Tensor) -> Tensor:
    """The eight items after the last one, those of the row left out."""
    order = (rows[:, -1:] + torch.arange(ITEMS)) % ITEMS + 1
    taken = (order[:, :, None] == rows[:, None]).any(2)
    return order.gather(1, taken.int().argsort(dim=1, stable=True)[:, :K])


def few() -> list[Tensor]:
    return [torch.arange(s, s + 9) % ITEMS + 1 for s in range(6)]


@pytest.mark.parametrize(
    ("generation", "made"), [("none", 0), ("random", 12), ("autoregressive", 12), ("uniform-list", 12)]
)
def test_every_arm_asks_what_it_says(generation: str, made: int) -> None:
    found = replace(METHOD, generation=generation).fit(circle, few(), seed=0)
    assert found.queries_ == 6 * 9 + 5 * made
    assert (found.generated_ is None) == (generation == "none")


@pytest.mark.parametrize(("name", "cls"), [("sasrec", SASRec), ("narm", NARM), ("bert4rec", BERT4Rec)])
def test_surrogates_by_name_and_given(name: str, cls: type) -> None:
    assert type(replace(METHOD, surrogate=name).extract(circle, few(), seed=0)) is cls
    with seeded(0, "start"):
        start = cls(ITEMS, 5, 8)
    before = {k: v.clone() for k, v in start.state_dict().items()}
    found = replace(METHOD, surrogate=start).extract(circle, few(), seed=0)
    assert found.width == 8
    assert all(v.equal(before[k]) for k, v in start.state_dict().items())


def test_the_best_check_counts() -> None:
    found = replace(METHOD, steps=30, every=5).fit(circle, few(), seed=1)
    assert len(found.history_) == 6
    short = replace(METHOD, steps=30, every=30).fit(circle, few(), seed=1)
    assert short.history_ == found.history_[-1:]


def test_the_repair_and_ratings_change_what_is_learned() -> None:
    base = METHOD.fit(circle, few(), seed=0)
    plain = replace(METHOD, lam=0.0).fit(circle, few(), seed=0)
    assert base.generated_ is not None
    assert plain.generated_ is not None
    assert base.generated_.rows.equal(plain.generated_.rows)
    weights = zip(base.surrogate_.parameters(), plain.surrogate_.parameters(), strict=True)
    assert any(not a.equal(b) for a, b in weights)
    ratings = [torch.arange(9).float() for _ in range(6)]
    rated = METHOD.fit(circle, few(), seed=0, ratings=ratings, meta=torch.eye(ITEMS + 1))
    assert rated.generated_ is not None
    assert not rated.generated_.rows.equal(base.generated_.rows)
    with pytest.raises(InputError, match="ratings of other lengths"):
        METHOD.fit(circle, few(), seed=0, ratings=ratings[:-1])


def test_lists_that_repeat_items_are_named_or_allowed() -> None:
    def repeating(rows: Tensor) -> Tensor:
        return (rows[:, -1:] - 1 + torch.arange(K)) % ITEMS + 1  # the last item comes first

    with pytest.raises(InputError, match="repeats=True"):
        METHOD.fit(repeating, few(), seed=0)
    found = replace(METHOD, repeats=True, steps=60, every=30, lr=3e-2).fit(repeating, few(), seed=0)
    assert found.history_[-1] > 0.4


def test_options_are_checked() -> None:
    for option in (
        {"max_len": 1},
        {"lam": -1.0},
        {"generation": "some"},
        {"surrogate": "gru"},
        {"n_generate": -1},
        {"surrogate": SASRec(9, 5)},
        {"surrogate": SASRec(25, 4)},
    ):
        with pytest.raises(InputError) as caught:
            replace(METHOD, **option)
        assert "\n" not in str(caught.value)
