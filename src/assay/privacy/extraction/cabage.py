"""Data-free extraction with hard replay, several generators, and queries that are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.privacy.extraction.game import DataFreeExtractor, Game
from assay.privacy.extraction.selective_query import SelectiveQuery


@dataclass(frozen=True, kw_only=True)
class CaBaGe(DataFreeExtractor):
    """Class-balanced generator ensemble (Rosenthal et al., 2024, arXiv:2409.10643) on the game of DisGUIDE.

    1. ``n_generators`` generators step on DisGUIDE's loss; the oldest is begun anew after every ``renew_share`` of the
    budget, and any whose last ``renew_window`` answers have a class entropy below ``renew_entropy`` ln K. 2. Of a pool
    of ``pool_factor`` batches, drawn evenly from all, ``selection`` sends one batch to the victim. 3. Clones step on it
    and on ``replay`` batches of the memory, drawn with weight (1 - p_y)^``gamma`` + ``floor``, p_y the clones' mean
    probability of the answer when last seen. 4. With ``num_classes`` None, outputs are appended as labels appear.

    Of the paper only the abstract's three innovations and the unknown number of classes were at hand, and the code of
    DisGUIDE by the same authors; the number of generators, the rule of renewal, the weight of the memory, the score and
    quota of the selection and the growth of the head are reconstructions, kept as options. Options, shapes and errors:
    see DataFreeExtractor and Extractor.
    """

    n_generators: int = 4
    pool_factor: int = 4
    gamma: float = 1.0
    selection: SelectiveQuery = SelectiveQuery()
    renew_share: float = 0.2
    renew_window: int = 2000
    renew_entropy: float = 0.5

    def choose(self, probs: Float[Tensor, "p c"], generator: torch.Generator) -> Int[Tensor, " b"]:
        return self.selection.select(probs, self.batch)

    def renewals(self, game: Game) -> list[int]:
        poor = [j for j, labels in enumerate(game.since) if self._poor(labels, len(game.labels))]
        if self.renew_share <= 0:
            return poor
        share, last = (int(s / game.steps / self.renew_share) for s in (game.step, max(game.step - self._turns, 0)))
        oldest = (share - 1) % self.n_generators
        return sorted({*poor, oldest}) if share > last else poor

    @property
    def _turns(self) -> int:
        return self.fresh + self.replay

    def _poor(self, labels: list[int], classes: int) -> bool:
        if len(labels) < self.renew_window:
            return False
        share = torch.bincount(torch.tensor(labels[-self.renew_window :])).float() / self.renew_window
        entropy = float(-(share[share > 0] * share[share > 0].log()).sum())
        return entropy < self.renew_entropy * math.log(max(classes, 2))
