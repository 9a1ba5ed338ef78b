"""STRIP: how sure a model stays of an input that others are laid over."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, check_logits, device_of, evaluating


@dataclass(kw_only=True)
class FittedSTRIP(FittedDetector):
    """``overlays_`` (k, ...) are the clean inputs that are laid over. Score: minus the mean entropy in bits."""

    overlays_: Tensor = field(default_factory=lambda: torch.empty(0))

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        low, high = self.bounds
        mixed = (x[:, None] + (self.overlays_.to(x) - low)).clamp(low, high)
        log_p = self.model(mixed.flatten(0, 1)).double().log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1) / math.log(2)
        return -entropy.reshape(len(x), -1).mean(1)

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        step = max(1, self.batch_size // len(self.overlays_))
        with evaluating(self.model):
            return batched(self.graph, x, batch_size=step, device=device_of(self.model))


@dataclass(frozen=True, kw_only=True)
class STRIP(Detector):
    """Strong intentional perturbation (Gao et al., 2019, arXiv:1902.06531, section 4, eq. 2-4).

    ``overlays`` clean inputs, drawn from the fit data by ``seed``, are laid over each query: pixel values add up and
    saturate at the bounds, as in the official code. A trigger keeps deciding for its target, so that low entropy is
    abnormal. All queries meet the same overlays (in the paper each draws its own), so that no score depends on another.
    Shapes and errors: see Detector.
    """

    finds: ClassVar[tuple[str, ...]] = ("triggers",)

    overlays: int = 100
    seed: int = 0

    def learn(self, model: nn.Module, data: Data) -> FittedSTRIP:
        if self.overlays < 1:
            raise InputError(f"STRIP: overlays={self.overlays}; expected at least 1")
        check_logits("STRIP", model, data.x[:1])
        return FittedSTRIP(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            overlays_=data.limit(self.overlays, seed=self.seed).x,
        )
