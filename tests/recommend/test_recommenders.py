"""Recommenders: one pass gives what every prefix alone gives, wherever it lies; and they learn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from assay.recommend import NARM, BERT4Rec, ProbabilisticInteractionSampler, Recommender, SASRec, train_next_item
from assay.recommend.items import prefixes
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Plan

ITEMS, LENGTH = 12, 6
CLASSES = (SASRec, NARM, BERT4Rec, ProbabilisticInteractionSampler)
ROWS = torch.tensor([[0, 0, 3, 5, 1, 2], [4, 7, 9, 11, 12, 1], [0, 0, 0, 0, 0, 8]])


def made(cls: type[Recommender], seed: int = 0) -> Recommender:
    with seeded(seed, "init"):
        return cls(ITEMS, LENGTH, 16).double().eval()


@pytest.mark.parametrize("cls", CLASSES)
def test_one_pass_gives_every_prefix(cls: type[Recommender]) -> None:
    model = made(cls)
    with torch.no_grad():
        whole = model.score(model.states(ROWS)[ROWS > 0])
        alone = torch.stack([model(row[row > 0][None])[0] for row in prefixes(ROWS)])  # without any padding
    torch.testing.assert_close(whole, model(prefixes(ROWS)).detach())
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("cls", CLASSES)
def test_what_follows_does_not_matter_and_what_came_does(cls: type[Recommender]) -> None:
    model, other, first = made(cls), ROWS.clone(), ROWS.clone()
    other[1, 4:] = torch.tensor([2, 3])
    first[1, 0] = 6
    with torch.no_grad():
        a, b, c = (model.states(r)[1] for r in (ROWS, other, first))
    torch.testing.assert_close(a[:4], b[:4])
    assert (a[4:] - b[4:]).abs().max() > 1e-6
    assert (a[3] - c[3]).abs().max() > 1e-9


@pytest.mark.parametrize("cls", CLASSES)
def test_recommends_new_items_in_any_batch(cls: type[Recommender]) -> None:
    model = made(cls).train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = model.recommend(ROWS, 5)
    assert found.equal(torch.cat([model.recommend(row[None], 5) for row in ROWS]))
    assert model.training
    assert torch.get_rng_state().equal(random)
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    for row, listed in zip(ROWS.tolist(), found.tolist(), strict=True):
        assert not set(listed) & {0, *row}
    bad: tuple[Tensor, ...] = (ROWS.float(), ROWS[0], torch.zeros(1, 7).long() + 1, torch.tensor([[1, 0]]))
    for rows in bad:
        with pytest.raises(InputError, match="ends in an item"):
            model.recommend(rows, 5)


@pytest.mark.parametrize("cls", CLASSES)
def test_learns_what_comes_next(cls: type[Recommender]) -> None:
    sequences = [torch.arange(s, s + 8) % ITEMS + 1 for s in range(ITEMS)]
    with seeded(1, "init"):
        start = cls(ITEMS, LENGTH, 16)
    before = copy.deepcopy(start.state_dict())
    model = train_next_item(start, sequences, Plan(epochs=60, batch_size=8, lr=1e-2), seed=0)
    assert all(v.equal(before[k]) for k, v in start.state_dict().items())
    rows = torch.stack([torch.arange(s, s + 4) % ITEMS + 1 for s in range(ITEMS)])
    assert model.recommend(rows, 1)[:, 0].equal((rows[:, -1] % ITEMS) + 1)


def test_attention_of_narm_by_hand() -> None:
    """States from the GRU alone: c_t = B [h_t; sum over j <= t of v . sigmoid(A1 h_t + A2 h_j) h_j]."""
    model = made(NARM)
    assert isinstance(model, NARM)
    row = torch.tensor([[3, 5, 1, 2]])
    with torch.no_grad():
        hidden = model.cell(model.items(row))[0][0]
        expected = []
        for t in range(4):
            weight = [model.weight((model.present(hidden[t]) + model.past(hidden[j])).sigmoid()) for j in range(t + 1)]
            local = sum(w * hidden[j] for j, w in enumerate(weight))
            expected.append(model.bilinear(torch.cat((hidden[t], torch.as_tensor(local)))))
        torch.testing.assert_close(model.states(row)[0], torch.stack(expected))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="recommender"):
        SASRec(1)
    model = SASRec(5, 4, 8)
    for sequences in ([], [torch.tensor([1])], [torch.tensor([1, 6])], [torch.tensor([0, 2])], [torch.rand(3)]):
        with pytest.raises(InputError) as caught:
            train_next_item(model, sequences, Plan(epochs=1), seed=0)
        assert "\n" not in str(caught.value)
    for rows, k, said in (
        ([[1, 6]], 1, "items 1 to 5"),
        ([[-1, 2]], 1, "items 1 to 5"),
        ([[3, 0, 1]], 1, "on the left"),
        ([[]], 1, "ends in an item"),
        ([[1, 2, 3]], 3, "outside each row"),
        ([[1, 1]], 6, "top items"),
    ):
        with pytest.raises(InputError, match=said):
            model.recommend(torch.tensor(rows, dtype=torch.int64), k)
    assert sorted(model.recommend(torch.tensor([[1, 1, 3]]), 3)[0].tolist()) == [2, 4, 5]
