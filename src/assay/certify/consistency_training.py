"""Consistency regularisation of smoothed classifiers."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.certify.gaussian_training import SmoothingTrainer, noisy_cross_entropy
from assay.certify.smoothed_classifier import mean_log_probabilities
from assay.data import Batch
from assay.runtime.errors import InputError
from assay.training import State


def consistency_regulariser(logits: Float[Tensor, "m n c"], lbd: float = 10.0, eta: float = 0.5) -> Float[Tensor, ""]:
    """Mean over samples of ``lbd`` x mean over copies of KL(p || p_j) + ``eta`` x H(p).

    Jeong & Shin, 2020, arXiv:2006.04062, section 3, as in the official code: p_j is the softmax of copy j of m, p their
    mean. Raises InputError on other shapes.
    """
    if logits.dim() != 3 or len(logits) < 1:
        raise InputError(f"consistency_regulariser: logits have shape {tuple(logits.shape)}; expected (m, n, c)")
    log_p = mean_log_probabilities(logits)
    p = log_p.exp()
    kl = (p * (log_p - logits.log_softmax(2))).sum(2).mean()
    entropy = -(p * log_p).sum(1).mean()
    return lbd * kl + eta * entropy


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(SmoothingTrainer):
    """Cross-entropy on ``m`` noisy copies + ``consistency_regulariser`` of their predictions.

    Jeong & Shin, 2020, arXiv:2006.04062, section 3. The values are those for sigma = 0.25 (lbd 20 at 0.5 and 1.0).
    Raises InputError on options out of range.
    """

    m: int = 2
    lbd: float = 10.0
    eta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lbd < 0 or self.eta < 0 or self.m < 2:
            given = f"m = {self.m}, lbd = {self.lbd}, eta = {self.eta}"
            raise InputError(f"ConsistencyTraining: {given}; expected m >= 2, lbd >= 0 and eta >= 0")

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        logits = self.logits(model, batch.x)
        return noisy_cross_entropy(logits, batch.y) + consistency_regulariser(logits, self.lbd, self.eta)
