"""Maximum softmax probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedLogits
from assay.runtime.inference import check_logits


@dataclass(kw_only=True)
class FittedMSP(FittedLogits):
    """Score in [0, 1 - 1/c]."""

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        # 1 - p without cancellation, so that confident inputs keep their order
        log_p = logits.log_softmax(1)
        others = log_p.scatter(1, log_p.argmax(1, keepdim=True), -torch.inf)
        return others.logsumexp(1).exp()


@dataclass(frozen=True, kw_only=True)
class MSP(Detector):
    """1 - max_c p(c|x), the baseline (Hendrycks & Gimpel, 2017, arXiv:1610.02136, section 3). Nothing is learned.

    Shapes, ranges and errors: see Detector.
    """

    def learn(self, model: nn.Module, data: Data) -> FittedMSP:
        check_logits("MSP", model, data.x[:1])
        return FittedMSP(model=model, shape=data.shape, bounds=data.bounds, batch_size=self.batch_size)
