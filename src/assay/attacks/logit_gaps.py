"""How the logits below the largest are spaced near it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

PLATEAU = 0.05  # share of samples over which the density next to 0 is averaged


def logit_gaps(logits: Float[Tensor, "n c"], j: int = 2) -> Float[Tensor, " n"]:
    """The gap between the largest and the ``j``-th largest logit, (n,) >= 0 (Cubuk et al., 2017, arXiv:1711.02846).

    ``logits`` (n, c), finite, c >= 2; 2 <= j <= c. Raises InputError for other input.
    """
    return _gaps(logits, j)[:, -1]


def _gaps(logits: Tensor, j: int) -> Float[Tensor, "n j-1"]:
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 2 or len(logits) == 0:
        kind = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"logit_gaps: logits are {kind}; expected floats (n, c) with n >= 1, c >= 2")
    if not 2 <= j <= logits.shape[1]:
        raise InputError(f"logit_gaps: j={j} of {logits.shape[1]} logits; expected 2 <= j <= c")
    if not torch.isfinite(logits).all():
        raise InputError("logit_gaps: logits hold NaN or infinite values; expected finite")
    top = logits.detach().topk(j, 1).values
    return top[:, :1] - top[:, 1:]


@dataclass(frozen=True, eq=False)
class LogitGapDistribution:
    """The distribution of the gaps below the largest logit, near 0 (Cubuk et al., 2017, arXiv:1711.02846).

    ``gaps_`` (n, c - 1) holds in column j - 2 the gap to the j-th largest logit. That it is below q takes j - 1 logits
    within q of the largest, so that its distribution starts as q^(j-1), whatever the network: the density of the gap to
    the second is a constant ``density0`` > 0 next to 0. Units: logits.
    """

    gaps_: Float[Tensor, "n c-1"]

    @classmethod
    def fit(cls, logits: Float[Tensor, "n c"]) -> LogitGapDistribution:
        """The gaps of finite ``logits`` (n, c), c >= 2. Raises InputError for other input."""
        width = logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() == 2 else 2
        return cls(_gaps(logits, width))

    def cumulative(self, q: float, j: int = 2) -> float:
        """The share of samples whose gap to the ``j``-th largest logit is below ``q`` > 0."""
        return float((self._column(j, q) < q).double().mean())

    @property
    def density0(self) -> float:
        """The density of the gap to the second logit next to 0, averaged over the nearest 5 % of the samples."""
        q = float(self.gaps_[:, 0].double().quantile(PLATEAU))
        if not q > 0:
            raise InputError("density0: a twentieth of the gaps is 0; expected logits of more digits")
        return self.cumulative(q) / q

    def local_exponent(self, j: int, q: float) -> float:
        """The power with which the distribution of the ``j``-th gap grows below ``q``: j - 1 for small q.

        Hill's estimator: the number of gaps below q over the sum of log(q / gap). NaN where there is none; 0 where one
        is 0, a tie of logits.
        """
        gaps = self._column(j, q).double()
        below = gaps[gaps < q]
        return float(len(below) / (q / below).log().sum()) if len(below) else float("nan")

    def _column(self, j: int, q: float) -> Tensor:
        if not 2 <= j <= self.gaps_.shape[1] + 1 or not q > 0:
            raise InputError(f"LogitGapDistribution: j={j}, q={q}; expected 2 <= j <= c and q > 0")
        return self.gaps_[:, j - 2]
