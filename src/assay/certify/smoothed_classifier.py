"""The soft smoothed classifier, on given noise."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError


class SmoothedClassifier(nn.Module):
    """log of the mean over j of softmax(model(x + noise_j)): G(x) = E[F(x + noise)] with m fixed draws.

    The estimate by which SmoothAdv attacks (Salman et al., 2019, arXiv:1906.04584, section 3). ``noise`` (m, n, ...)
    has its own draws for each of the n samples of a batch, (m, 1, ...) the same for all. The outputs are
    log-probabilities, so that cross-entropy of them is -log G(x)_y. Differentiable in x. Raises InputError where the
    shapes do not fit.
    """

    noise: Tensor

    def __init__(self, model: nn.Module, noise: Float[Tensor, "m n ..."]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        """Log-probabilities (n, c), in one pass over all copies."""
        m, n = self.noise.shape[:2]
        if self.noise.shape[2:] != x.shape[1:] or n not in (1, len(x)):
            shapes = f"noise {tuple(self.noise.shape)} for x {tuple(x.shape)}"
            raise InputError(f"SmoothedClassifier: {shapes}; expected (m, {len(x)} or 1, *{tuple(x.shape[1:])})")
        return mean_log_probabilities(self.model((x + self.noise).flatten(0, 1)).unflatten(0, (m, len(x))))


def mean_log_probabilities(logits: Float[Tensor, "m n c"]) -> Float[Tensor, "n c"]:
    """log of the mean over m copies of softmax(logits)."""
    return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))
