"""MixMatch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch
from assay.labels.semi_supervised import SemiSupervised, Unlabelled
from assay.labels.sharpening import sharpened
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng, torch_rng
from assay.training import State


@dataclass(frozen=True, kw_only=True)
class MixMatch(SemiSupervised):
    """Guessed labels, sharpened, and all samples mixed up (Berthelot et al., 2019, arXiv:1905.02249, Algorithm 1).

    The guess for an unlabelled sample is the mean prediction on ``views`` weak views, to the power 1 / ``temperature``
    and normalised. Labelled samples and unlabelled views are mixed, inputs and targets alike, each with a random one of
    all, by lambda' = max(lambda, 1 - lambda), lambda ~ Beta(``alpha``, ``alpha``) for each. L = CE of the mixed
    labelled + ``weight`` x mean squared error of probabilities on the mixed unlabelled, its weight rising linearly
    over the first ``rampup`` steps (0: at once). mu = 1, views 2, T 0.5, alpha 0.75, weight 75 and 16,000 steps are
    the paper's for CIFAR-10. Guesses are made in training mode, without gradient. InputError for other options.
    """

    mu: int = 1
    views: int = 2
    temperature: float = 0.5
    alpha: float = 0.75
    weight: float = 75.0
    rampup: int = 16_000

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = all(0 < v < math.inf for v in (self.temperature, self.alpha))
        if not positive or self.views < 1 or self.rampup < 0 or not 0 <= self.weight < math.inf:
            raise InputError(
                f"MixMatch: views={self.views}, temperature={self.temperature}, alpha={self.alpha}, "
                f"weight={self.weight}, rampup={self.rampup}; expected views >= 1, temperature and alpha > 0, "
                "weight and rampup >= 0"
            )

    def guess(self, logits: Float[Tensor, "k b c"]) -> Float[Tensor, "b c"]:
        """The sharpened mean prediction of k views."""
        return sharpened(logits.softmax(2).mean(0), self.temperature)

    def risen(self, step: int) -> float:
        """The weight of the unlabelled part at ``step``."""
        return self.weight * (min(step / self.rampup, 1.0) if self.rampup else 1.0)

    def mixed(self, x: Tensor, target: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each mixed with a random one of them."""
        drawn = numpy_rng(state.seed, "MixMatch", state.step).beta(self.alpha, self.alpha, len(x))
        share = torch.from_numpy(drawn).to(x)
        share = torch.maximum(share, 1 - share)
        partner = torch.randperm(len(x), generator=torch_rng(state.seed, "MixMatch", state.step)).to(x.device)
        wide = share.view(-1, *[1] * (x.dim() - 1))
        return wide * x + (1 - wide) * x[partner], share[:, None] * target + (1 - share[:, None]) * target[partner]

    def loss(self, model: nn.Module, labelled: Batch, unlabelled: Unlabelled, state: State) -> Float[Tensor, ""]:
        n, b = len(labelled.y), len(unlabelled.rows)
        known = self.view("labelled", self.weak, labelled.x, labelled.index, state)
        views = torch.cat(
            [self.view(f"weak {k}", self.weak, unlabelled.x, unlabelled.index, state) for k in range(self.views)]
        )
        with torch.no_grad():
            guess = self.guess(model(views).unflatten(0, (self.views, b)))
        target = torch.cat((F.one_hot(labelled.y, guess.shape[1]).to(guess), guess.repeat(self.views, 1)))
        x, target = self.mixed(torch.cat((known, views)), target, state)
        logits = model(x)
        error = (logits[n:].softmax(1) - target[n:]).square().mean()
        return F.cross_entropy(logits[:n], target[:n]) + self.risen(state.step) * error
