"""Loss correction by an estimated transition matrix: what its two directions share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.transition import estimate_transition
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive
from assay.training import State, Trainer, fit


@dataclass(frozen=True, kw_only=True)
class LossCorrection(Trainer):
    """Two stages (Patrini et al., 2017, arXiv:1609.03872, Algorithm 1): plain training on the given labels, whose
    predictions give the transition matrix T; then training, from the model's weights again, under a loss that T
    corrects.

    Either stage has the whole plan and ``augment``, so that the work is twice that of plain training. ``percentile``:
    see estimate_transition. InputError for a percentile outside [0, 100], or where T cannot be used.
    """

    contract: ClassVar[bool] = True

    percentile: float = 100.0

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise InputError(f"{type(self).__name__}: percentile={self.percentile}; expected a number in [0, 100]")

    def corrected(self, transition: Tensor) -> nn.Module:
        """The loss under a transition matrix (c, c)."""
        raise TypeError(f"{type(self).__name__} states no loss")

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        augment = options.get("augment")
        first = self.plain().fit(model, data, seed=derive(seed, "transition"), augment=augment)
        loss = self.corrected(estimate_transition(predict(first, data.x).softmax(1), self.percentile))

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            return loss(net(batch.x), batch.y)

        return fit(model, data, objective, self.plan(), seed=seed, **options)
