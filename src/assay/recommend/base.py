"""The contract of extractors: a copy of a victim that is only asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from assay.recommend.generation import Answers
from assay.recommend.items import Victim
from assay.recommend.recommender import Recommender
from assay.subject.access import Access, Oracle


@dataclass(frozen=True)
class Extraction:
    """What an extraction found.

    surrogate_: the copy; generated_: the rows that were made up, with the victim's lists (None where none were);
    queries_: prefixes that the victim was asked, each one query; history_: after every epoch the agreement of the
    first K items with the victim's on held-out prefixes of the few sequences; the best epoch's weights are kept.
    """

    surrogate_: Recommender
    generated_: Answers | None
    queries_: int
    history_: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """``extract(victim, few_shot, seed=) -> surrogate``: a copy of a victim that gives lists only.

    victim: rows (n, l) of items, padded with 0 on the left, to lists (n, k) of items, or an Oracle of one, with its
    budget. few_shot: int64 sequences (t,) of items from 1 on. A subclass states ``fit``. Raises InputError for unusable
    sequences or lists, BudgetError where an oracle's budget does not do.
    """

    kind: ClassVar[str] = "extractor"
    contract: ClassVar[bool] = True
    access: ClassVar[Access] = Access.DECISION

    def fit(self, victim: Victim | Oracle, few_shot: list[Int[Tensor, " t"]], *, seed: int) -> Extraction:
        """The copy, and how it came about."""
        raise TypeError(f"{type(self).__name__} states no fit")

    def extract(self, victim: Victim | Oracle, few_shot: list[Int[Tensor, " t"]], *, seed: int) -> Recommender:
        """The copy alone."""
        return self.fit(victim, few_shot, seed=seed).surrogate_
