"""Rows, prefixes and lists by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.recommend import agreement_at_k, load_movielens, ndcg_at_k, padded, prefixes, recall_at_k, windows
from assay.recommend.items import allowed, check_lists, contained, top_items
from assay.runtime.errors import InputError


def test_rows_by_hand() -> None:
    a, b = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6, 7])
    assert padded([a, b], 3).tolist() == [[3, 4, 5], [0, 6, 7]]
    assert windows([a, b], 2).tolist() == [[4, 5], [2, 3], [0, 1], [6, 7]]
    assert prefixes(torch.tensor([[0, 6, 7], [3, 4, 5]])).tolist() == [
        [0, 0, 6],
        [0, 6, 7],
        [0, 0, 3],
        [0, 3, 4],
        [3, 4, 5],
    ]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(1, 6))
def test_windows_hold_every_item_once_and_prefixes_end_in_each(sequences: list[list[int]], length: int) -> None:
    rows = windows([torch.tensor(s) for s in sequences], length)
    assert sorted(rows[rows > 0].tolist()) == sorted(i for s in sequences for i in s)
    assert prefixes(rows)[:, -1].tolist() == rows[rows > 0].tolist()
    assert ((prefixes(rows) > 0).diff(dim=1) >= 0).all() or length == 1  # padding is on the left only


def test_what_cannot_be_recommended_is_not() -> None:
    rng = np.random.default_rng(0)
    scores, rows = torch.from_numpy(rng.normal(size=(40, 12))), torch.from_numpy(rng.integers(0, 12, (40, 5)))
    found = top_items(allowed(scores, rows), 4)
    for k in range(40):
        free = [i for i in range(1, 12) if i not in rows[k].tolist()]
        best = sorted(free, key=lambda i: -float(scores[k, i]))[:4]
        assert found[k].tolist()[: len(best)] == best
    with pytest.raises(InputError, match="number of items"):
        top_items(scores, 12)


def test_agreement_is_symmetric_and_blind_to_order() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(30, 20, generator=g).argsort(1) + 1 for _ in range(2))
    expected = [len(set(x[:7]) & set(y[:7])) / 7 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert agreement_at_k(a, b, 7).tolist() == pytest.approx(expected)
    assert agreement_at_k(a, b, 7).equal(agreement_at_k(b, a, 7))
    assert agreement_at_k(a[:, :7], a[:, :7].flip(1), 7).eq(1).all()
    for k, other in ((0, b), (21, b), (3, b[1:])):
        with pytest.raises(InputError, match="agreement"):
            agreement_at_k(a, other, k)


def test_recall_and_ndcg_by_hand() -> None:
    lists, truth = torch.tensor([[4, 2, 9], [4, 2, 9], [4, 2, 9]]), torch.tensor([4, 9, 7])
    assert recall_at_k(lists, truth, 3).tolist() == [1, 1, 0]
    assert recall_at_k(lists, truth, 2).tolist() == [1, 0, 0]
    assert ndcg_at_k(lists, truth, 3).tolist() == pytest.approx([1, 1 / math.log2(4), 0])
    for measure in (recall_at_k, ndcg_at_k):
        for wrong, k in ((truth, 0), (truth, -1), (truth[:, None], 2)):
            with pytest.raises(InputError, match="k >= 1"):
                measure(lists, wrong, k)


def test_contained() -> None:
    assert contained(torch.tensor([[1, 5, 2]]), torch.tensor([[2, 7, 1, 8]])).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (torch.tensor([[1, 2]]), "of shape"),
        (torch.tensor([[1.0, 2.0, 3.0]]), "of shape"),
        (torch.tensor([[0, 2, 3]]), "span"),
        (torch.tensor([[1, 2, 10]]), "span"),
        (torch.tensor([[1, 2, 1]]), "twice"),
    ],
)
def test_lists_are_checked(lists: torch.Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_lists("victim", lists, 1, 3, 9)


def test_movielens_as_sequences(real_data) -> None:
    data = load_movielens(folder=real_data / "movielens100k")
    assert data.n_items == 1682
    assert len(data.sequences) == len(data.ratings) == 943  # the one user with three ratings is left out
    assert sum(map(len, data.sequences)) == 99_997
    assert data.meta[1:].sum(1).min() >= 1
    assert data.meta[0].sum() == 0
    often = load_movielens(least=100, folder=real_data / "movielens100k")
    counts = torch.bincount(torch.cat(often.sequences))
    assert len(counts) == often.n_items + 1
    assert counts[1:].min() >= 95
    assert all(len(s) == len(r) >= 5 for s, r in zip(often.sequences, often.ratings, strict=True))


def test_movielens_in_the_order_of_time(tmp_path) -> None:
    rows = [(3, 9, 5, 20), (3, 7, 4, 10), (5, 7, 1, 5), (3, 4, 2, 10), (5, 9, 3, 1), (8, 4, 3, 1)]
    (tmp_path / "u.data").write_text("".join("\t".join(map(str, r)) + "\n" for r in rows))
    genres = "|".join(["1", *["0"] * 18])
    (tmp_path / "u.item").write_text("".join(f"{i}|x|y||z|{genres}\n" for i in (4, 7, 9)))
    data = load_movielens(shortest=2, folder=tmp_path)
    assert [s.tolist() for s in data.sequences] == [[2, 1, 3], [3, 2]]  # equal times as in the file
    assert [r.tolist() for r in data.ratings] == [[4, 2, 5], [3, 1]]
    assert data.meta[1:, 0].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match=r"no u\.data"):
        load_movielens(folder=tmp_path / "nowhere")
