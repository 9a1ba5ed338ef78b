"""ODIN: the largest softmax probability at a high temperature, after a small step towards it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector
from assay.detect.msp import FittedMSP
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, check_logits, device_of, evaluating


@dataclass(kw_only=True)
class FittedODIN(FittedMSP):
    """Score in [0, 1 - 1/c]; at high temperatures all scores lie close to its upper end."""

    temperature: float = 1000.0
    magnitude: float = 0.0014

    def of_logits(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        return super().of_logits(logits / self.temperature)

    def moved(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """x + magnitude sign(grad log max_c S_c(x; T)) (eq. 2), not clipped, as a constant."""
        if self.magnitude == 0:
            return x.detach()
        with evaluating(self.model), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_(True)
            log_p = (self.model(leaf).double() / self.temperature).log_softmax(1)
            (slope,) = torch.autograd.grad(log_p.amax(1).sum(), leaf)
        return leaf.detach() + self.magnitude * slope.sign()

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """See FittedDetector; the step is a constant here, as sign() has no slope."""
        return super().graph(x + (self.moved(x) - x).detach())

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        def score(part: Tensor) -> Tensor:
            return self.of_logits(self.model(self.moved(part)).double())

        with evaluating(self.model):
            return batched(score, x, batch_size=self.batch_size, device=device_of(self.model))


@dataclass(frozen=True, kw_only=True)
class ODIN(Detector):
    """1 - max_c softmax(f(x~) / T)_c (Liang et al., 2018, arXiv:1706.02690, eq. 1-2).

    ``magnitude`` is the step towards the predicted class in the data's own units (the paper's 0.0014 is of normalised
    inputs); 0 leaves the temperature alone. Nothing is learned. Shapes and errors: see Detector.
    """

    temperature: float = 1000.0
    magnitude: float = 0.0014

    def learn(self, model: nn.Module, data: Data) -> FittedODIN:
        if not (self.temperature > 0 and self.magnitude >= 0):
            raise InputError(
                f"ODIN: temperature={self.temperature}, magnitude={self.magnitude}; expected temperature > 0 and "
                "magnitude >= 0"
            )
        check_logits("ODIN", model, data.x[:1])
        return FittedODIN(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            temperature=self.temperature,
            magnitude=self.magnitude,
        )
