"""The Carlini-Wagner loss extended to ordered top-k targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.attacks.penalty import PenaltyAttack


@dataclass(frozen=True, kw_only=True)
class CWTopK(PenaltyAttack):
    """CW^K (Zhang and Wu, 2020, arXiv:2007.12684; as in the code of Paniagua et al., 2023, arXiv:2312.11510).

    The penalty is the mean over i = 1..k of relu(max_{j not in t_1..t_i} s_j - min_{j in t_1..t_i} s_j +
    ``confidence``), s the logits. With k = 1 it is the loss of Carlini and Wagner (2017, arXiv:1608.04644, f_6).
    Shapes, the loop and errors: see PenaltyAttack.
    """

    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.confidence) and self.confidence >= 0):
            self.refuse("confidence", self.confidence, "a finite number >= 0")

    def penalty(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, "n k"]) -> Float[Tensor, " n"]:
        k = targets.shape[1]
        least = logits.gather(1, targets).cummin(1).values
        rank = torch.full(logits.shape, k, device=logits.device).scatter(
            1, targets, torch.arange(k, device=logits.device).expand_as(targets)
        )
        rivals = torch.stack([logits.masked_fill(rank <= i, -math.inf).amax(1) for i in range(k)], 1)
        return (rivals - least + self.confidence).clamp_min(0).mean(1)
