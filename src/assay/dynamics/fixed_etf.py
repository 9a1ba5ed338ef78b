"""Training with the classifier fixed to a simplex ETF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.dynamics.collapse import head_inputs
from assay.dynamics.etf_classifier import ETFNetwork, attach_etf
from assay.losses import DotRegressionLoss
from assay.runtime.errors import InputError, unknown
from assay.training import State, Trainer


@dataclass(frozen=True, kw_only=True)
class FixedETF(Trainer):
    """The head becomes a fixed simplex ETF, all below it is trained (Yang et al., 2022, arXiv:2203.09081, section 4).

    Features have norm sqrt(``e_h``), classifier rows sqrt(``e_w``); ``loss`` is dot regression (eq. 7) or, with
    "cross-entropy", CE of the same logits, whose scale sqrt(e_w e_h) then matters: at 1, CE cannot get near 0.
    The model's linear head (see head_inputs) is replaced by ``attach_etf``, one that has an ETF already goes on from
    it. The official code has batch normalisation before the head: after a ReLU no feature has a negative coordinate,
    and the frame is out of reach. Returns an ETFNetwork. Raises InputError for other values, and for a model without a
    linear head.
    """

    loss: Literal["dot-regression", "cross-entropy"] = "dot-regression"
    e_w: float = 1.0
    e_h: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in ("dot-regression", "cross-entropy"):
            raise unknown("loss of FixedETF", self.loss, ("dot-regression", "cross-entropy"))
        if not (0 < self.e_w < float("inf") and 0 < self.e_h < float("inf")):
            raise InputError(f"FixedETF: e_w={self.e_w}, e_h={self.e_h}; expected finite numbers > 0")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits = model(batch.x)
        if self.loss == "cross-entropy":
            return F.cross_entropy(logits, batch.y)
        return DotRegressionLoss(self.e_w, self.e_h)(logits, batch.y)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        if not isinstance(model, ETFNetwork):
            _, head = head_inputs(model, data.x[:1])
            layer = next(name for name, module in model.named_modules() if module is head)
            model = attach_etf(model, layer, e_w=self.e_w, e_h=self.e_h, seed=seed)
        return super().fit(model, data, seed=seed, **options)
