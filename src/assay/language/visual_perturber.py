"""Words whose characters are replaced by others that look alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from assay.language.similarity_space import FittedSpace
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import numpy_rng


class Substitution(NamedTuple):
    """Position ``at`` of the word: ``old`` became ``new``, its ``rank``-th neighbour, at cosine ``distance``."""

    at: int
    old: str
    new: str
    rank: int
    distance: float


@dataclass(frozen=True)
class Perturbation:
    """What was done to ``original``: each substitution, and whether there was none (``unchanged``)."""

    original: str
    k: int
    n: float
    substitutions: tuple[Substitution, ...]

    @property
    def unchanged(self) -> bool:
        """True where the share of characters came to none."""
        return not self.substitutions


@dataclass(frozen=True)
class VisualPerturber:
    """Replaces int(len * n) characters, drawn without replacement, by their r-th neighbour, r uniform on 1..k (Seth et
    al., 2023, arXiv:2303.05077, and the Perturber of their released code).

    ``space``: a fitted SimilaritySpace. What is drawn follows from ``seed``, the word, k, n and the number of the
    draw, and from nothing else. A character that the space lacks raises InputError, or under ``missing="skip"`` is
    never drawn: the share is of the whole word still, as far as there are characters to draw.
    """

    kind: ClassVar[str] = "function"

    space: FittedSpace
    seed: int = 0
    missing: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        if self.missing not in ("skip", "raise"):
            raise unknown("missing of VisualPerturber", str(self.missing), ("skip", "raise"))

    def perturb(self, word: str, k: int = 10, n: float = 0.5, *, draw: int = 0) -> tuple[str, Perturbation]:
        """The ``draw``-th perturbation of ``word``, and its record. Raises InputError for an empty word, a share n
        outside [0, 1], and k outside 1..space.k."""
        if not word:
            raise InputError("VisualPerturber: the word is empty; expected at least one character")
        if not 0 <= n <= 1 or not 1 <= k <= self.space.k:
            raise InputError(f"VisualPerturber: n={n}, k={k}; expected n in [0, 1] and k in 1..{self.space.k}")
        known = [i for i, c in enumerate(word) if c in self.space]
        if len(known) < len(word) and self.missing == "raise":
            lost = next(c for c in word if c not in self.space)
            raise InputError(
                f"VisualPerturber: {lost!r} of {word!r} is not in the space; expected its characters in it"
            )
        rng = numpy_rng(self.seed, "perturb", word, k, n, draw)
        places = rng.permutation(known)[: int(len(word) * n)]
        made = tuple(self._substitution(word, int(at), int(rng.integers(1, k + 1))) for at in places)
        new = {s.at: s.new for s in made}
        return "".join(new.get(i, c) for i, c in enumerate(word)), Perturbation(word, k, n, made)

    def _substitution(self, word: str, at: int, rank: int) -> Substitution:
        chars, distances = self.space.neighbors(word[at], rank)
        return Substitution(at, word[at], chars[rank], rank, float(distances[rank]))
