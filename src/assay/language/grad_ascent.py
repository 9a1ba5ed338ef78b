"""Unlearning replies by gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.language.replies import Replies, reply_logits, token_logps
from assay.language.reply_unlearner import ReplyUnlearner, mean_nll
from assay.runtime.errors import unknown

PER = ("token", "reply")


@dataclass(frozen=True, kw_only=True)
class GradAscent(ReplyUnlearner):
    """Climb the cross-entropy of the replies to forget (Jang et al., 2023, arXiv:2210.01504; Maini et al., 2024,
    arXiv:2401.06121, "gradient ascent").

    The loss is -CE, ``per`` "token" the mean over all target tokens of a batch, "reply" the mean over replies of the
    sum over their tokens. It has no lower bound: a long run destroys the model. Options: see ReplyUnlearner.
    """

    contract: ClassVar[bool] = False

    per: Literal["token", "reply"] = "token"

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise unknown(f"per of {type(self).__name__}", str(self.per), PER)

    def forget_loss(
        self, model: nn.Module, reference: nn.Module | None, batch: Replies, *, seed: int
    ) -> Float[Tensor, ""]:
        if self.per == "token":
            return -mean_nll(model, batch)
        return token_logps(reply_logits(model, batch), batch.labels, average=False).mean()
