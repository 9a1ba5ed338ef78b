"""Sequences that follow the victim's own lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.recommend.few_shot import FewShot
from assay.recommend.generation import Generation


@dataclass(frozen=True, kw_only=True)
class AutoregressiveGeneration(Generation):
    """The next item uniformly from the victim's list: the data-free method of Yue et al. (2021, arXiv:2109.01165)."""

    def following(self, rows: Tensor, lists: Tensor, draw: Tensor, counts: FewShot) -> Float[Tensor, "n v"]:
        return torch.zeros(len(rows), len(counts.seen)).scatter(1, lists, 1.0)
