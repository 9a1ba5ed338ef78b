"""EnsLoss: a random convex and calibrated loss at every step."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.margin import margins
from assay.losses.pairs import check_reduction, reduced
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng, torch_rng


def inverse_box_cox(e: Float[Tensor, "*s"], lam: float) -> Float[Tensor, "*s"]:
    """exp(e) where ``lam`` is 0, else max(1 + lam e, 0)^(1 / lam): >= 0, in the shape of ``e``."""
    return e.exp() if lam == 0 else (1 + lam * e).clamp_min(0) ** (1 / lam)


def _drawn(loss: EnsLoss, _keys: object) -> None:
    """Give ``loss`` the Box-Cox parameter of its state."""
    epochs = int(loss.epochs)
    if 0 < loss.period <= epochs:
        loss.lam = loss.draw(epochs - epochs % loss.period)


class EnsLoss(nn.Module):
    """A new random surrogate at every call, given by its slopes at a batch's margins (Dai, 2024, arXiv:2409.00908).

    Of margins z = y f (n,), y = +-1, the slopes g are drawn as -inverse_box_cox(e), e ~ N(0, 1), and made those of a
    *convex, calibrated* loss: sorted so that the smallest margin has the most negative one, clipped at -``clip``,
    divided by z where z > 1 (``tail``), less ``eps``. The value is mean g z with g held constant, so that the gradient
    is mean g y grad f; it is linear in z and no monitor of training. The formulas follow the authors' code.

    ``lam`` is the Box-Cox parameter. With ``period`` k > 0 it is drawn anew from U(-1, 1) at every k-th call of
    ``step_epoch()``; without (-1, as in the paper's tables) it stays. Draws depend on ``seed`` and on the numbers of
    calls and of epochs so far, which are buffers. In evaluation mode it is the logistic loss, which draws nothing.
    ``multiclass`` (not the paper's, which proves consistency for two classes alone) takes f_y - max over k != y of f_k
    for the margin.

    ``scores`` f (n,) or (n, 1), finite, or logits (n, c) where ``multiclass``; ``target`` (n,) int64, 0 for y = -1 and
    1 for y = +1, or in [0, c). Returns a scalar, or (n,) under ``reduction="none"``. The slopes depend on ranks in
    the batch: gradients of two half batches do not add up to that of the whole. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True
    batchwise: ClassVar[bool] = True
    calls: Tensor
    epochs: Tensor

    def __init__(
        self,
        lam: float = 0.0,
        clip: float = 1.0,
        tail: Literal["inverse", "none"] = "inverse",
        eps: float = 1e-6,
        period: int = -1,
        multiclass: bool = False,
        reduction: Literal["mean", "sum", "none"] = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(lam) and 0 < clip < math.inf and 0 < eps < math.inf):
            raise InputError(f"EnsLoss: lam={lam}, clip={clip}, eps={eps}; expected finite numbers, clip and eps > 0")
        if tail not in ("inverse", "none"):
            raise InputError(f"EnsLoss: tail={tail!r}; expected inverse or none")
        check_reduction("EnsLoss", reduction)
        self.lam, self.clip, self.tail, self.eps = float(lam), float(clip), tail, float(eps)
        self.period, self.multiclass, self.reduction, self.seed = period, multiclass, reduction, seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_drawn)

    def normals(self, n: int) -> Float[Tensor, " n"]:
        """The normal numbers of the next call, float64 on the CPU."""
        return torch.randn(n, generator=torch_rng(self.seed, "ensloss", int(self.calls)), dtype=torch.float64)

    def assigned(self, z: Float[Tensor, " n"], u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The slopes ``u``, given in ascending order, at margins ``z``: the smallest margin has the first."""
        return torch.empty_like(u).index_copy(0, z.argsort(stable=True), u)

    def derivatives(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The slopes g that the next call takes at these margins."""
        z = margins("EnsLoss", scores, target, multiclass=self.multiclass).detach()
        u = -inverse_box_cox(self.normals(len(z)), self.lam).to(z)
        g = self.assigned(z, u.sort().values.clamp_min(-self.clip))
        if self.tail == "inverse":
            g = torch.where(z > 1, g / z, g)
        return g - self.eps

    def step_epoch(self) -> None:
        """Tell the loss that an epoch has ended."""
        self.epochs += 1
        if self.period > 0 and self.epochs % self.period == 0:
            self.lam = self.draw(int(self.epochs))

    def draw(self, epochs: int) -> float:
        """The Box-Cox parameter that is drawn once ``epochs`` have ended."""
        return float(numpy_rng(self.seed, "ensloss/lam", epochs).uniform(-1, 1))

    def forward(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``scores`` under ``target``."""
        z = margins("EnsLoss", scores, target, multiclass=self.multiclass)
        if not self.training:
            return reduced(F.softplus(-z), self.reduction)
        g = self.derivatives(scores, target)
        self.calls += 1
        return reduced(g * z, self.reduction)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, clip={self.clip}, tail={self.tail!r}, eps={self.eps}, period={self.period}"
