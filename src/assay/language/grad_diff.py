"""Unlearning replies by gradient ascent that is held by others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.language.grad_ascent import GradAscent
from assay.language.replies import IGNORED, Replies, next_logps, reply_logits
from assay.language.reply_unlearner import mean_nll
from assay.runtime.errors import InputError, unknown

RETAIN = ("nll", "kl")


def reply_divergence(model: nn.Module, reference: nn.Module, batch: Replies) -> Float[Tensor, ""]:
    """KL(reference || model) in nats of the next token, the mean over all target tokens of the batch."""
    with torch.no_grad():
        taught = next_logps(reply_logits(reference, batch))
    own = next_logps(reply_logits(model, batch))
    each = (taught.exp() * (taught - own)).sum(2)
    real = batch.labels[:, 1:] != IGNORED
    return (each * real).sum() / real.sum()


@dataclass(frozen=True, kw_only=True)
class GradDiff(GradAscent):
    """Climb the cross-entropy of what is to be forgotten and descend that of what is retained (Liu et al., 2022,
    arXiv:2203.12817; Maini et al., 2024, arXiv:2401.06121, "gradient difference").

    ``gamma`` (-CE(forget)) + ``alpha`` L_retain, both weights >= 0; ``retain_loss`` "nll": CE(retain); "kl": the
    divergence of the next token from the model as it was (``reply_divergence``), TOFU's "KL minimisation". Options: see
    GradAscent.
    """

    gamma: float = 1.0
    alpha: float = 1.0
    retain_loss: Literal["nll", "kl"] = "nll"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retain_loss not in RETAIN:
            raise unknown(f"retain_loss of {type(self).__name__}", str(self.retain_loss), RETAIN)
        if not (self.gamma >= 0 and self.alpha >= 0):
            raise InputError(f"{type(self).__name__}: gamma={self.gamma}, alpha={self.alpha}; expected both >= 0")

    @property
    def retains(self) -> bool:
        return self.alpha > 0

    @property
    def compares(self) -> bool:
        return self.retains and self.retain_loss == "kl"

    def retain_loss_of(self, model: nn.Module, reference: nn.Module | None, batch: Replies) -> Float[Tensor, ""]:
        """The loss on replies to retain."""
        if self.retain_loss == "nll":
            return mean_nll(model, batch)
        assert reference is not None
        return reply_divergence(model, reference, batch)

    def losses(
        self, model: nn.Module, reference: nn.Module | None, forget: Replies, retain: Replies | None, *, seed: int = 0
    ) -> dict[str, Tensor]:
        """loss, forget and retain of a batch of each set."""
        lost = self.forget_loss(model, reference, forget, seed=seed)
        held = lost.new_zeros(()) if retain is None else self.retain_loss_of(model, reference, retain)
        return {"loss": self.gamma * lost + self.alpha * held, "forget": lost, "retain": held}
