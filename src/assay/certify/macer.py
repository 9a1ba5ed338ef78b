"""MACER: training for a large certified radius, without attacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.certify.base import best_other
from assay.certify.gaussian_training import SmoothingTrainer
from assay.certify.smoothed_classifier import mean_log_probabilities
from assay.data import Batch
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.training import State

CLIP = 1e-10  # probabilities nearer to 0 or 1 have no finite Phi^-1; their gap of 12.7 is beyond any useful gamma


def soft_radius(
    logits: Float[Tensor, "m n c"], y: Int[Tensor, " n"], sigma: float, beta: float = 16.0
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """sigma / 2 (Phi^-1(z_y) - Phi^-1(max over k != y of z_k)), differentiable, and where z_y is the largest.

    Zhai et al., 2020, arXiv:2001.02378, section 4: z is the mean over m noisy copies of softmax(``beta`` x logits).
    Radii are float64, in the units of ``sigma``, negative where another class is more likely. Raises InputError on
    other shapes and labels out of range.
    """
    if logits.dim() != 3 or logits.shape[2] < 2:
        raise InputError(f"soft_radius: logits have shape {tuple(logits.shape)}; expected (m, n, c) with c >= 2")
    check_labels("soft_radius", y, logits.shape[1], logits.shape[2])
    z = (beta * logits.double()).softmax(2).mean(0)
    own, other = z.gather(1, y[:, None])[:, 0], best_other(z, y)
    gap = torch.special.ndtri(own.clamp(CLIP, 1 - CLIP)) - torch.special.ndtri(other.clamp(CLIP, 1 - CLIP))
    return sigma / 2 * gap, own > other


@dataclass(frozen=True, kw_only=True)
class MACER(SmoothingTrainer):
    """Cross-entropy of the smoothed classifier + ``lbd`` x hinge on its certified radius, where it is right.

    Zhai et al., 2020, arXiv:2001.02378, algorithm 1: mean over samples of -log z_y + lbd sigma / 2 max(gamma - xi, 0),
    with xi = Phi^-1(z_y) - Phi^-1(largest other z) over samples that are classified right. z averages softmax over
    ``m`` noisy copies, with logits scaled by ``beta`` in the second term. ``gamma`` is in units of sigma / 2. The
    values are the official code's for CIFAR-10 at sigma = 0.25, but for ``deferred``, the share of the steps for
    which lbd is 0 at first: that code has none there and 50 of 440 epochs at sigma = 1. In runs of few epochs a new
    network settles on one class unless it is long; for a trained one 0 will do. Raises InputError on options out of
    range.
    """

    m: int = 16
    lbd: float = 12.0
    gamma: float = 8.0
    beta: float = 16.0
    deferred: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lbd < 0 or self.gamma <= 0 or self.beta <= 0 or not 0 <= self.deferred <= 1:
            given = f"lbd = {self.lbd}, gamma = {self.gamma}, beta = {self.beta}, deferred = {self.deferred}"
            raise InputError(f"MACER: {given}; expected lbd >= 0, gamma > 0, beta > 0 and 0 <= deferred <= 1")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits = self.logits(model, batch.x)
        correct = F.nll_loss(mean_log_probabilities(logits), batch.y)
        if state.step < self.deferred * state.total:
            return correct
        radius, right = soft_radius(logits, batch.y, self.sigma, self.beta)
        missing = (self.sigma / 2 * self.gamma - radius).clamp_min(0)
        robustness = torch.where(right, missing, 0.0).mean().to(logits)
        return correct + self.lbd * robustness
