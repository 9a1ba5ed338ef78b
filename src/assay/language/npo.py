"""Unlearning replies as preferences without a preferred one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.language.grad_diff import GradDiff
from assay.language.replies import Replies, reply_logits, token_logps
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NPO(GradDiff):
    """Negative preference optimisation (Zhang et al., 2024, arXiv:2404.05868).

    -(2 / ``beta``) mean log sigmoid(-``beta`` log(p(reply) / p_before(reply))), with the probability of the whole reply
    and that of the model as it was; >= 0. Each reply's gradient is that of its log-probability times
    2 r^beta / (r^beta + 1) with r the ratio: 1 at the start, and vanishing as the reply gets unlikely, where gradient
    ascent goes on. As beta -> 0 the loss less (2 / beta) log 2 is the mean of log r: gradient ascent ``per`` reply.

    ``alpha`` 1 with ``retain_loss`` "nll" is the paper's NPO+RT, with "kl" NPO+KL; 0 is NPO alone. ``beta`` > 0.
    Options: see GradDiff.
    """

    per: Literal["token", "reply"] = "reply"
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0 or self.per != "reply":
            raise InputError(f"NPO: beta={self.beta}, per={self.per!r}; expected beta > 0, and whole replies")

    @property
    def compares(self) -> bool:
        return True

    def forget_loss(
        self, model: nn.Module, reference: nn.Module | None, batch: Replies, *, seed: int
    ) -> Float[Tensor, ""]:
        assert reference is not None
        with torch.no_grad():
            before = token_logps(reply_logits(reference, batch), batch.labels, average=False)
        ratio = token_logps(reply_logits(model, batch), batch.labels, average=False) - before
        return -F.logsigmoid(-self.beta * ratio).mean() * 2 / self.beta
