"""Training under another loss in cross-entropy's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from assay.data import Batch, Data
from assay.training import State, Trainer


@dataclass(frozen=True, kw_only=True)
class RobustLoss(Trainer):
    """A trainer that differs from plain training in its loss of (logits, given labels) alone."""

    contract: ClassVar[bool] = True

    def loss(self, data: Data) -> nn.Module:
        """The loss for training on ``data``; InputError for parameters out of range."""
        raise TypeError(f"{type(self).__name__} states no loss")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return self.loss(state.data)(model(batch.x), batch.y)
