"""Which characters look alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.language.word_renderer import WordRenderer
from assay.runtime.errors import InputError, unknown

Features = Callable[[Tensor], Tensor]
BLOCK = 256  # rows at a time: 30,000 characters of 1,024 features stay below 2 GB


@dataclass(frozen=True, kw_only=True)
class SimilaritySpace:
    """The nearest characters of each by the cosine distance of their pictures' features (Seth et al., 2023,
    arXiv:2303.05077): 1 - x.y / (|x| |y|).

    ``features``: "imgdot", the pixels, or a function of pictures (n, 1, s, s) in [0, 1] with ink 1 that gives (n, d),
    where the paper has encoders such as TrOCR, DETR, BEiT and CLIP; ``k`` >= 1 neighbours are kept; ``renderer`` draws
    the pictures. A character that the font does not draw (no glyph, a mark, a blank, a control character, right to
    left) is left out, or under ``missing="raise"`` refused.
    """

    kind: ClassVar[str] = "function"

    features: Literal["imgdot"] | Features = "imgdot"
    k: int = 50
    renderer: WordRenderer = WordRenderer()
    missing: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        if not callable(self.features) and self.features != "imgdot":
            raise unknown("features of SimilaritySpace", str(self.features), ("imgdot",))
        if self.k < 1:
            raise InputError(f"SimilaritySpace: k={self.k}; expected at least 1 neighbour")
        if self.missing not in ("skip", "raise"):
            raise unknown("missing of SimilaritySpace", str(self.missing), ("skip", "raise"))

    def fit(self, chars: str | Sequence[int], *, sources: str | Sequence[int] = "") -> FittedSpace:
        """The neighbours of every character of ``chars`` (text or code points) among the others.

        ``sources`` have neighbours among ``chars`` too and are nobody's neighbours themselves. Raises InputError where
        fewer than k + 1 characters of ``chars`` are drawn.
        """
        own = self._drawn(chars)
        rows = list(dict.fromkeys(self._drawn(sources) + own))
        if len(own) <= self.k:
            raise InputError(f"SimilaritySpace: {len(own)} characters are drawn; expected more than k={self.k} of them")
        place, at = {c: i for i, c in enumerate(own)}, {c: i for i, c in enumerate(rows)}
        itself = torch.tensor([place.get(c, -1) for c in rows])
        left = self._vectors(rows)
        right = left[[at[c] for c in own]]
        parts = [
            _nearest(left[i : i + BLOCK], right, itself[i : i + BLOCK], self.k) for i in range(0, len(rows), BLOCK)
        ]
        distance, index = (torch.cat(found) for found in zip(*parts, strict=True))
        codes, sources_ = (torch.tensor([ord(c) for c in part]) for part in (own, rows))
        return FittedSpace(
            k=self.k,
            neighbors_=torch.cat((sources_[:, None], codes[index]), 1),
            distances_=torch.cat((distance.new_zeros(len(rows), 1), distance), 1),
            rows_=at,
        )

    def _drawn(self, chars: str | Sequence[int]) -> list[str]:
        named = list(dict.fromkeys(c if isinstance(c, str) else chr(c) for c in chars))
        lost = [c for c in named if not self.renderer.draws(c)]
        if lost and self.missing == "raise":
            raise InputError(
                f"SimilaritySpace: U+{ord(lost[0]):04X} is not drawn by the font; expected a glyph of its own"
            )
        gone = set(lost)
        return [c for c in named if c not in gone]

    def _vectors(self, chars: list[str]) -> Float[Tensor, "n d"]:
        pictures = self.renderer.glyphs(chars)[:, None]
        vectors = pictures.flatten(1) if not callable(self.features) else self.features(pictures)
        if vectors.dim() != 2 or len(vectors) != len(chars) or not torch.isfinite(vectors).all():
            raise InputError(f"SimilaritySpace: features are {tuple(vectors.shape)}; expected finite ({len(chars)}, d)")
        return torch.nn.functional.normalize(vectors.detach().double())


def _nearest(
    left: Float[Tensor, "b d"], right: Float[Tensor, "n d"], itself: Int[Tensor, " b"], k: int
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Distances and positions of the k nearest, equal ones (to 1e-9) by position; nothing is its own neighbour."""
    distance = (1 - left @ right.T).clamp_min(0)
    known = itself >= 0
    distance[known.nonzero()[:, 0], itself[known]] = torch.inf
    rank = (distance * 1e9).round() * len(right) + torch.arange(len(right))  # whole numbers below 2**53, all different
    order = rank.topk(k, 1, largest=False).indices
    return distance.gather(1, order), order


@dataclass(frozen=True, eq=False)
class FittedSpace:
    """Neighbours of each character. ``neighbors_`` (n, k + 1) code points and ``distances_`` (n, k + 1), nearest first.

    Column 0 is the character itself, at distance 0, also where another one looks the same; ``rows_`` is the row of
    each character.
    """

    k: int
    neighbors_: Int[Tensor, "n k1"]
    distances_: Float[Tensor, "n k1"]
    rows_: dict[str, int]

    def __contains__(self, char: str) -> bool:
        return char in self.rows_

    def neighbors(self, char: str, k: int | None = None) -> tuple[list[str], Float[Tensor, " k1"]]:
        """The character and its ``k`` nearest, with their distances. InputError for an unknown one, or k beyond it."""
        k = self.k if k is None else k
        if char not in self.rows_:
            raise InputError(
                f"similarity space: {char!r} is not in it; expected one of its {len(self.rows_)} characters"
            )
        if not 0 <= k <= self.k:
            raise InputError(f"similarity space: k={k}; expected 0 to {self.k}")
        row = self.rows_[char]
        return [chr(c) for c in self.neighbors_[row, : k + 1].tolist()], self.distances_[row, : k + 1]
