"""Robustness to how samples are weighted, with a KL penalty."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError


def _check(where: str, losses: Tensor, r: float) -> None:
    if not 0 < r < math.inf:
        raise InputError(f"{where}: r={r}; expected a finite number > 0")
    if losses.dim() != 1 or len(losses) == 0 or not torch.isfinite(losses).all():
        raise InputError(f"{where}: losses {tuple(losses.shape)}; expected (n,), n >= 1, finite")


def log_mean_exp(losses: Float[Tensor, " n"], r: float) -> Float[Tensor, ""]:
    """log of the mean of exp(losses / r)."""
    return (losses / r).logsumexp(0) - math.log(len(losses))


def dro_weights(losses: Float[Tensor, " n"], r: float) -> Float[Tensor, " n"]:
    """w_i = exp(l_i / r) / sum_j exp(l_j / r), which sum to 1 (Sow et al., 2024, arXiv:2308.00311, eq. 5).

    They maximise sum w_i l_i - r KL(w || uniform) over the simplex; the maximum is r log mean exp(l / r). ``losses``
    (n,) finite, ``r`` > 0: weights are even as it grows, and all on the worst sample as it falls to 0.
    """
    _check("dro_weights", losses, r)
    return (losses / r).softmax(0)


class KLDROLoss(nn.Module):
    """r log u, u an estimate of the mean of exp(l / r) (Sow et al., 2024, arXiv:2308.00311, eq. 6; tilted risk, Li et
    al., 2021, arXiv:2007.01162, at t = 1 / r).

    ``losses`` (n,) of a batch. Without ``momentum`` u is the batch's mean: over small batches the log of a mean is
    biased. With ``momentum`` in [0, 1), u = momentum u + (1 - momentum) times the batch's mean, kept as ``log_u`` in
    the state and begun with the first batch; the gradient is then the mean of exp(l_i / r) / u times that of l_i. In
    evaluation mode u is the batch's mean and ``log_u`` stays.
    All is done with logarithms: exp(l / r) overflows for small ``r``. InputError for r <= 0, another momentum, and
    losses that are not finite.
    """

    def __init__(self, r: float = 1.0, momentum: float | None = None) -> None:
        super().__init__()
        if not 0 < r < math.inf or (momentum is not None and not 0 <= momentum < 1):
            raise InputError(f"KLDROLoss: r={r}, momentum={momentum}; expected r > 0 and momentum in [0, 1) or None")
        self.r, self.momentum = float(r), momentum
        self.log_u: Tensor
        self.register_buffer("log_u", torch.tensor(math.nan))

    def forward(self, losses: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The robust loss of ``losses``."""
        _check("KLDROLoss", losses, self.r)
        if self.momentum is None or not self.training:
            return self.r * log_mean_exp(losses, self.r)
        self.log_u = tracked(self.log_u, losses, self.r, 1 - self.momentum)
        factor = (losses.detach() / self.r - self.log_u).exp()
        moved = (factor * losses).mean()
        return self.r * self.log_u + moved - moved.detach()

    def extra_repr(self) -> str:
        return f"r={self.r}, momentum={self.momentum}"


@torch.no_grad()
def tracked(log_u: Float[Tensor, ""], losses: Float[Tensor, " n"], r: float, eta: float) -> Float[Tensor, ""]:
    """log((1 - eta) u + eta mean exp(l / r)), from ``log_u``; the batch's alone where that is NaN or eta is 1."""
    now = log_mean_exp(losses, r)
    if eta == 1 or bool(log_u.isnan()):
        return now
    return torch.logaddexp(log_u.to(now) + math.log1p(-eta), now + math.log(eta))
