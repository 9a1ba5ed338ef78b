"""The engine of generation: rows grown item by item with a victim's list after each; one query a prefix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.recommend.few_shot import FewShot
from assay.recommend.items import Victim, check_lists, prefixes
from assay.runtime.errors import InputError
from assay.runtime.random import Draws
from assay.subject.access import Oracle


@dataclass(frozen=True)
class Answers:
    """Rows (n, l) of items, padded with 0 on the left, and the victim's list after each (n, l, k), 0 at padding."""

    rows: Int[Tensor, "n l"]
    lists: Int[Tensor, "n l k"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor | slice) -> Answers:
        return Answers(self.rows[which], self.lists[which])

    def joined(self, other: Answers) -> Answers:
        """Both, as rows of the longer length."""
        length = max(self.rows.shape[1], other.rows.shape[1])
        a, b = self.widened(length), other.widened(length)
        return Answers(torch.cat((a.rows, b.rows)), torch.cat((a.lists, b.lists)))

    def widened(self, length: int) -> Answers:
        """With padding up to ``length`` items."""
        n, had, k = self.lists.shape
        rows, lists = self.rows.new_zeros(n, length - had), self.lists.new_zeros(n, length - had, k)
        return Answers(torch.cat((rows, self.rows), 1), torch.cat((lists, self.lists), 1))


@dataclass
class Asked:
    """A victim that is asked for lists of ``k`` of ``n_items`` items; every answer is checked and counted."""

    victim: Victim | Oracle
    n_items: int
    k: int
    oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        self.oracle = self.victim if isinstance(self.victim, Oracle) else Oracle(self.victim)

    def __call__(self, rows: Int[Tensor, "n l"]) -> Int[Tensor, "n k"]:
        """The lists after whole rows, one query each."""
        lists = self.oracle(rows)
        check_lists("victim", lists, len(rows), self.k, self.n_items)
        return lists

    def every_prefix(self, rows: Int[Tensor, "n l"]) -> Answers:
        """The lists after every prefix of the rows."""
        lists = torch.zeros(*rows.shape, self.k, dtype=torch.int64)
        lists[rows > 0] = self(prefixes(rows))
        return Answers(rows, lists)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """``grow(asked, counts, n, length, seed=) -> Answers``: n rows of ``length`` items made up by asking the victim.

    A subclass states ``start`` and ``following``: probabilities of the first and of the next item. No item comes twice
    in a row. A row depends on the seed and its number, not on the others.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    def start(self, counts: FewShot, n_items: int) -> Float[Tensor, " v"]:
        """Probabilities of the first item; item 0 has none."""
        return torch.ones(n_items + 1).index_fill(0, torch.zeros(1, dtype=torch.int64), 0.0) / n_items

    def following(
        self, rows: Int[Tensor, "n t"], lists: Int[Tensor, "n k"], draw: Float[Tensor, " n"], counts: FewShot
    ) -> Float[Tensor, "n v"]:
        """Weights of all items after the rows; ``draw`` is uniform. Items 0 and those of the row are left out later."""
        raise TypeError(f"{type(self).__name__} states no next item")

    def grow(self, asked: Asked, counts: FewShot, n: int, length: int, *, seed: int) -> Answers:
        """The rows with the list after every item: n * length queries."""
        if n < 1 or length < 1 or length >= asked.n_items:
            raise InputError(f"{type(self).__name__}: n {n}, length {length}; expected 1 and more, below the items")
        draws = Draws(seed, "generation", torch.arange(n))
        first = self.start(counts, asked.n_items).expand(n, -1)
        rows, lists = pick(first, draws.uniform(1)[:, 0])[:, None], []
        for step in range(length):
            lists.append(asked(rows))
            if step < length - 1:
                u = draws.uniform(2)
                with torch.no_grad():
                    weights = self.following(rows, lists[-1], u[:, 0], counts)
                weights = weights.scatter(1, rows, 0.0).index_fill(1, torch.zeros(1, dtype=torch.int64), 0.0)
                spare = weights.sum(1, keepdim=True) == 0  # nothing that is new: any new item
                fresh = torch.ones_like(weights).scatter(1, rows, 0.0)
                fresh[:, 0] = 0
                rows = torch.cat((rows, pick(torch.where(spare, fresh, weights), u[:, 1])[:, None]), 1)
        return Answers(rows, torch.stack(lists, 1))


def pick(weights: Float[Tensor, "n v"], u: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One place of each row, in proportion to its weights, by the inverse of their running sum at u in (0, 1)."""
    total = weights.double().cumsum(1)
    return torch.searchsorted(total, (u.double() * total[:, -1])[:, None], right=True)[:, 0]
