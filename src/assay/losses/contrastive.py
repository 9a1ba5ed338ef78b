"""Contrastive losses of two views, and the softmax one, whose temperature says how hard the nearest negatives weigh."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError, unknown

Negatives = Literal["batch", "views", "queue"]


class ContrastiveLoss(nn.Module):
    """What contrastive losses share: the similarities of each sample's positive and of its negatives.

    ``loss(z1, z2, queue=None) -> scalar``, a mean over i: row i of ``z1`` (n, d) and of ``z2`` are two views of
    sample i. With z at norm 1 (unless ``normalize`` is off) the positive is s_ii = z1_i . z2_i; the negatives s_ik
    are, by ``negatives``, the other rows of z2 ("batch"), those of z2 and z1 ("views", as SimCLR) or the rows of
    ``queue`` (m, d), embeddings of other samples ("queue"). ``symmetric`` takes the mean with both views exchanged.
    Gradients pass through all arguments; the value is computed in float32 at least. Raises InputError for n < 2, other
    shapes, a queue that is missing or not asked for, and embeddings that are 0 (where they are normalised) or not
    finite.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    def __init__(self, negatives: Negatives = "batch", symmetric: bool = False, normalize: bool = True) -> None:
        super().__init__()
        if negatives not in ("batch", "views", "queue"):
            raise unknown(f"negatives of {type(self).__name__}", negatives, ("batch", "views", "queue"))
        self.negatives, self.symmetric, self.normalize = negatives, symmetric, normalize

    def of_scores(self, positive: Float[Tensor, " n"], negative: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """The loss of each sample from the similarities s_ii and s_ik."""
        raise TypeError(f"{type(self).__name__} states no loss of similarities")

    def forward(
        self, z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], queue: Float[Tensor, "m d"] | None = None
    ) -> Float[Tensor, ""]:
        """The mean loss of the pairs."""
        self._check(z1, z2, queue)
        dtype = torch.promote_types(z1.dtype, torch.float32)
        z1, z2, queue = z1.to(dtype), z2.to(dtype), None if queue is None else queue.to(dtype)
        if self.normalize:
            z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
            queue = None if queue is None else F.normalize(queue, dim=1)
        losses = [self.of_scores(*self._scores(z1, z2, queue))]
        if self.symmetric:
            losses.append(self.of_scores(*self._scores(z2, z1, queue)))
        return torch.stack(losses).mean()

    def _scores(self, z1: Tensor, z2: Tensor, queue: Tensor | None) -> tuple[Tensor, Tensor]:
        if queue is not None:
            return (z1 * z2).sum(1), z1 @ queue.T
        across = z1 @ z2.T
        others = [off_diagonal(across)]
        if self.negatives == "views":
            others.append(off_diagonal(z1 @ z1.T))
        return across.diagonal(), torch.cat(others, 1)

    def _check(self, z1: Tensor, z2: Tensor, queue: Tensor | None) -> None:
        where = type(self).__name__
        if z1.dim() != 2 or z1.shape != z2.shape or len(z1) < 2 or not z1.is_floating_point():
            shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
            raise InputError(f"{where}: embeddings {shapes}; expected the same (n, d) of floats with n >= 2")
        if (queue is not None) != (self.negatives == "queue"):
            given = "no queue" if queue is None else "a queue"
            raise InputError(f"{where}: {given} with negatives={self.negatives!r}; expected a queue with 'queue' only")
        if queue is not None and (queue.dim() != 2 or queue.shape[1] != z1.shape[1] or len(queue) == 0):
            raise InputError(f"{where}: queue {tuple(queue.shape)}; expected (m, {z1.shape[1]}) with m >= 1")
        for z in (z1, z2) if queue is None else (z1, z2, queue):
            if not torch.isfinite(z).all() or (self.normalize and not z.any(1).all()):
                raise InputError(f"{where}: embeddings hold zero rows or NaN; expected finite rows other than 0")


class InfoNCE(ContrastiveLoss):
    """The softmax contrastive loss: L_i = - log(exp(s_ii / tau) / (exp(s_ii / tau) + sum_k exp(s_ik / tau))).

    Wang & Liu, 2021, arXiv:2012.09740. With P_ik the softmax over the positive and the negatives,
    dL_i/ds_ik = P_ik / tau and dL_i/ds_ii = - sum_k P_ik / tau: the negatives share the gradient in
    proportion to exp(s_ik / tau). As tau -> 0, tau L_i -> max(max_k s_ik - s_ii, 0); as tau grows all of them weigh
    alike. ``temperature`` tau > 0; a smaller one also makes the whole gradient larger by 1 / tau, which
    ``scale_by_tau`` takes out (tau L). The rest as ContrastiveLoss; "views" is the NT-Xent loss of SimCLR.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: Negatives = "batch",
        symmetric: bool = False,
        normalize: bool = True,
        scale_by_tau: bool = False,
    ) -> None:
        super().__init__(negatives, symmetric, normalize)
        self.temperature, self.scale_by_tau = check_temperature(type(self).__name__, temperature), scale_by_tau

    def of_scores(self, positive: Float[Tensor, " n"], negative: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        logits = torch.cat((positive[:, None], negative), 1) / self.temperature
        loss = logits.logsumexp(1) - logits[:, 0]
        return loss * self.temperature if self.scale_by_tau else loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, negatives={self.negatives!r}"


def off_diagonal(scores: Float[Tensor, "n n"]) -> Float[Tensor, "n n-1"]:
    """Each row without its entry on the diagonal."""
    n = len(scores)
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def check_temperature(where: str, temperature: float) -> float:
    """``temperature`` as a float; InputError unless it is finite and above 0."""
    if not 0 < temperature < math.inf:
        raise InputError(f"{where}: temperature={temperature}; expected a finite number > 0")
    return float(temperature)


def check_quantile(where: str, quantile: float) -> None:
    """InputError unless ``quantile`` is in (0, 1]."""
    if not 0 < quantile <= 1:
        raise InputError(f"{where}: quantile={quantile}; expected a share in (0, 1]")


def hardest(negative: Float[Tensor, "n m"], quantile: float) -> Float[Tensor, "n k"]:
    """The upper quantile of each row: its ceil(quantile m) largest entries."""
    count = max(math.ceil(quantile * negative.shape[1] - 1e-9), 1)  # 0.07 * 100 is just above 7
    return negative.topk(count, dim=1).values
