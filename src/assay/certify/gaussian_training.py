"""Training under Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch
from assay.runtime.errors import InputError
from assay.training import State, Trainer
from assay.training.trainer import PLAN_FIELDS


@dataclass(frozen=True, kw_only=True)
class GaussianTraining(Trainer):
    """Minimise cross-entropy on ``m`` noisy copies of each sample (Cohen et al., 2019, arXiv:1902.02918, section 3.3).

    ``sigma``, in the data's units, is the deviation at which the classifier will be smoothed. Copies are not clipped to
    the data's bounds, as smoothing does not clip them either. New noise at every step. Raises InputError
    unless sigma >= 0 is finite and m >= 1.
    """

    sigma: float = 0.25
    m: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf") or self.m < 1:
            where = type(self).__name__
            raise InputError(f"{where}: sigma = {self.sigma}, m = {self.m}; expected a finite sigma >= 0 and m >= 1")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        return noisy_cross_entropy(self.logits(model, batch.x), batch.y)

    def noise(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "m n ..."]:
        """New draws; the engine seeds torch's generator for every epoch, so they follow from the run's seed."""
        return self.sigma * torch.randn(self.m, *x.shape, device=x.device, dtype=x.dtype)

    def logits(self, model: nn.Module, x: Float[Tensor, "n ..."]) -> Float[Tensor, "m n c"]:
        """Of m noisy copies of each sample."""
        return model((x + self.noise(x)).flatten(0, 1)).unflatten(0, (self.m, len(x)))


@dataclass(frozen=True, kw_only=True)
class SmoothingTrainer(GaussianTraining):
    """Training under noise with more to it; its control is ``GaussianTraining`` on as many noisy copies."""

    def plain(self) -> Trainer:
        """The same plan, noise and number of copies, with cross-entropy alone."""
        return GaussianTraining(**{name: getattr(self, name) for name in (*PLAN_FIELDS, "sigma", "m")})


def noisy_cross_entropy(logits: Float[Tensor, "m n c"], y: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy over samples and copies."""
    return F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))
