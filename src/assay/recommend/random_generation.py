"""Sequences of random items: the plainest way to ask a victim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.recommend.few_shot import FewShot
from assay.recommend.generation import Generation


@dataclass(frozen=True, kw_only=True)
class RandomGeneration(Generation):
    """Every item uniformly at random: the first data-free baseline of Yue et al. (2021, arXiv:2109.01165)."""

    def following(self, rows: Tensor, lists: Tensor, draw: Tensor, counts: FewShot) -> Float[Tensor, "n v"]:
        return torch.ones(len(rows), len(counts.seen))
