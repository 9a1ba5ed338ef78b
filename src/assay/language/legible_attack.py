"""Perturbations that stay legible by a model's judgement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from assay.language.legibility_model import FittedLegibility
from assay.language.visual_perturber import VisualPerturber
from assay.runtime.errors import InputError

Loss = Callable[[list[str]], Float[Tensor, " n"]]


@dataclass(frozen=True, kw_only=True)
class LegibleAttack:
    """Of a word's perturbations the legible one that is most legible, or that a victim loses most on (the use of the
    models of Seth et al., 2023, arXiv:2303.05077, in attacks).

    Candidates: ``draws`` perturbations by ``perturber`` at every k of ``ks`` and share n of ``ns``; one that changes
    nothing is none. Those that ``model`` scores above ``threshold`` are legible (0: as likely as not).
    """

    kind: ClassVar[str] = "function"

    perturber: VisualPerturber
    model: FittedLegibility
    ks: tuple[int, ...] = (1, 5, 10, 20)
    ns: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    draws: int = 1
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.ks or not self.ns or self.draws < 1:
            raise InputError(f"LegibleAttack: ks={self.ks}, ns={self.ns}, draws={self.draws}; expected some of each")

    def candidates(self, word: str) -> list[str]:
        """The distinct perturbations of ``word`` that change it."""
        grid = product(self.ks, self.ns, range(self.draws))
        made = (self.perturber.perturb(word, k, n, draw=d)[0] for k, n, d in grid)
        return [w for w in dict.fromkeys(made) if w != word]

    def perturb(self, word: str, loss: Loss | None = None) -> str:
        """The chosen perturbation; ``word`` itself where none is legible.

        ``loss`` gives the victim's loss for each of a list of words, (n,); without it the score of ``model`` decides.
        """
        words = self.candidates(word)
        if not words:
            return word
        score = self.model.score(words, [word] * len(words))
        value = score if loss is None else loss(words)
        if value.shape != score.shape:
            raise InputError(
                f"LegibleAttack: the loss gives {tuple(value.shape)}; expected one a word, ({len(words)},)"
            )
        legible = (score > self.threshold).nonzero()[:, 0]
        return words[int(legible[value.to(score)[legible].argmax()])] if len(legible) else word
