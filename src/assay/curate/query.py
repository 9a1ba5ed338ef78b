"""The contract of query samplers: which unlabelled points a teacher is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


@dataclass(frozen=True)
class Pool:
    """What is known of the points to choose from.

    probs (n, c): the student's probabilities. features (n, d): its representation of them, and labelled (k, d) of the
    points whose labels are known, for samplers that use distances. error: the teacher's error rate in [0, 1], as
    estimated on labelled data.
    """

    probs: Float[Tensor, "n c"]
    features: Float[Tensor, "n d"] | None = None
    labelled: Float[Tensor, "k d"] | None = None
    error: float | None = None

    def __len__(self) -> int:
        return len(self.probs)


@dataclass(frozen=True)
class Query:
    """Positions (b,) in the pool, distinct and ascending, and the probability (b,) with which each was drawn."""

    rows: Int[Tensor, " b"]
    inclusion: Float[Tensor, " b"]


@dataclass(frozen=True, kw_only=True)
class QuerySampler:
    """``select(pool, b, *, seed) -> Query``; labels are never looked at.

    ``inputs`` are what the teacher is shown for the chosen points: the points themselves unless a method mixes them.
    Raises InputError unless 1 <= b <= len(pool), and for probabilities that are none.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    def select(self, pool: Pool, b: int, *, seed: int) -> Query:
        """The ``b`` points to ask about."""
        raise TypeError(f"{type(self).__name__} does not select")

    def inputs(self, x: Float[Tensor, "n ..."], pool: Pool, rows: Int[Tensor, " b"], *, seed: int) -> Tensor:
        """What the teacher and then the student see: (b, ...)."""
        return x[rows]

    def check(self, pool: Pool, b: int) -> None:
        """The check that all samplers make."""
        if not 1 <= b <= len(pool):
            raise InputError(f"{type(self).__name__}: b={b} of {len(pool)} points; expected 1 to {len(pool)}")
