"""Co-teaching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.elr_plus import MeanLogits
from assay.runtime.errors import InputError
from assay.subject import fresh
from assay.training import State, Trainer


@dataclass(frozen=True, kw_only=True)
class CoTeaching(Trainer):
    """Two networks, each of which learns from what the other finds easy (Han et al., 2018, arXiv:1804.06872, Alg. 1).

    Of each batch, a network names the share R of smallest loss, and the *other* one takes its step on these. R = 1 -
    ``forget_rate`` x min(epoch / ``ramp``, 1), epochs counted from 0; ``forget_rate`` in [0, 1) is best the share of
    wrong labels. The first network starts from the model's weights and is what ``fit`` returns; the second starts
    from fresh ones. Both plans are the trainer's: the work is twice that of plain training. InputError for other
    parameters.
    """

    forget_rate: float = 0.2
    ramp: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.forget_rate < 1 or self.ramp < 1:
            where = type(self).__name__
            raise InputError(
                f"{where}: forget_rate={self.forget_rate}, ramp={self.ramp}; expected a share in [0, 1), ramp >= 1"
            )

    def kept(self, epoch: int) -> float:
        """The share R of a batch that is learnt from in ``epoch``."""
        return 1 - self.forget_rate * min(epoch / self.ramp, 1)

    def easy(self, logits: Float[Tensor, "b c"], y: Int[Tensor, " b"], epoch: int) -> Int[Tensor, " k"]:
        """The rows that a network names: those of its smallest losses, at least one."""
        losses = F.cross_entropy(logits.detach(), y, reduction="none")
        return losses.argsort(stable=True)[: max(int(self.kept(epoch) * len(y) + 1e-9), 1)]

    def exchanged(
        self, first: Float[Tensor, "b c"], second: Float[Tensor, "b c"], y: Int[Tensor, " b"], epoch: int
    ) -> Float[Tensor, ""]:
        """The sum of both networks' losses, each on the rows that the other one names."""
        for_first, for_second = self.easy(second, y, epoch), self.easy(first, y, epoch)
        return F.cross_entropy(first[for_first], y[for_first]) + F.cross_entropy(second[for_second], y[for_second])

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        # The gradient of either loss reaches one network alone, so that one optimiser does the work of two.
        first, second = (net(batch.x) for net in model.children())
        return self.exchanged(first, second, batch.y, state.epoch)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        pair = MeanLogits(model, fresh(model, seed=seed))
        return next(super().fit(pair, data, seed=seed, **options).children())
