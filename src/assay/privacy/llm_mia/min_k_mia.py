"""The least likely tokens of a text as evidence of membership."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.privacy.llm_mia.base import TextInference, Texts, token_losses
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class MinKMIA(TextInference):
    """Score = the mean log-probability of the share ``k`` of tokens that are least likely (Min-k% Prob, Shi et al.,
    2024, arXiv:2310.16789, eq. 1): at least one token, rounded down.

    k = 1 is LossMIA. The official code of Wang et al. (2024, arXiv:2402.17012) averages the likeliest tokens instead;
    the equation is followed. ``model``: a causal model of transformers. InputError for a share outside (0, 1].
    """

    model: nn.Module
    k: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise InputError(f"MinKMIA: k={self.k}; expected a share in (0, 1]")

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        counted = texts.mask[:, 1:]
        losses = token_losses(self.model, texts, self.batch_size).masked_fill(~counted, -torch.inf)
        kept = (counted.sum(1, keepdim=True) * self.k + 1e-9).long().clamp_min(1)
        worst = losses.sort(1, descending=True).values
        chosen = torch.arange(worst.shape[1])[None] < kept
        return -worst.masked_fill(~chosen, 0.0).sum(1) / kept[:, 0]
