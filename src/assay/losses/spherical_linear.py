"""An output layer whose training step costs the same for any number of classes."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.losses.spherical import SphericalLoss
from assay.losses.z_loss import ZLoss
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

REFACTOR = 1000  # steps, at most, between two products V U
DRIFT = math.log(1e3)  # of |det U| since the last one


class SphericalLinear:
    """Scores o = W h for D classes, trained by plain SGD under a spherical loss in O(m d^2 + m^2 d) a batch, whatever
    D is; no score but the targets' is computed (Vincent et al., 2015, arXiv:1412.7091; for a whole batch at once, by
    Woodbury's identity).

    W (D, d) is kept as V U + 1 omega^T, beside Q = W^T W (d, d) and w = W^T 1 (d,). With losses averaged over a batch
    H (m, d), the gradient in the scores is alpha 1^T + diag(beta) O + sum gamma_i e_(c_i), of which the second term
    multiplies W from the right by M = I - lr H^T diag(beta) H and so goes into U, the first into omega, and the third
    into the targets' rows of V, through the *new* U^-1. The result is that of dense SGD up to rounding. U is multiplied
    out when its determinant has left [1e-3, 1e3] and every 1000 steps, in O(D d^2); so is a step whose M alone is below
    1e-3, which may have no inverse. ``rescale`` holds the norm of W, which is free under ZLoss.

    ``loss`` is averaged over the batch; momentum and adaptive rates have no such form. ``lr`` > 0 may be set between
    steps. W starts uniform in +-1/sqrt(d), as torch's linear layer, drawn from ``seed``. InputError for sizes below 1
    (two classes at least), another loss, and batches of another shape, with labels out of range or not finite.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self,
        d: int,
        classes: int,
        loss: SphericalLoss | None = None,
        lr: float = 0.1,
        *,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        chosen = ZLoss() if loss is None else loss
        if d < 1 or classes < 2 or not 0 < lr < math.inf:
            raise InputError(
                f"SphericalLinear: d={d}, classes={classes}, lr={lr}; expected d >= 1, classes >= 2, lr > 0"
            )
        if not isinstance(chosen, SphericalLoss) or dtype not in ("float32", "float64"):
            found = f"loss {type(chosen).__name__}, dtype {dtype}"
            raise InputError(f"SphericalLinear: {found}; expected a SphericalLoss, float32 or float64")
        self.d, self.classes, self.loss, self.lr = d, classes, chosen, lr
        drawn = torch.rand(classes, d, generator=torch_rng(seed, "spherical"), dtype=torch.float64)
        self._start(((2 * drawn - 1) / d**0.5).to(getattr(torch, dtype)))

    def _start(self, weight: Float[Tensor, "D d"]) -> None:
        self.v, self.omega = weight, weight.new_zeros(self.d)
        self.u = torch.eye(self.d).to(weight)
        self.u_inverse, self.q, self.w = self.u.clone(), weight.T @ weight, weight.sum(0)
        self.drift, self.steps = 0.0, 0

    def weight(self) -> Float[Tensor, "D d"]:
        """W, multiplied out."""
        return self.v @ self.u + self.omega

    def scores(self, h: Float[Tensor, "m d"]) -> Float[Tensor, "m D"]:
        """All scores of a batch, in O(m D d)."""
        return (h @ self.u.T) @ self.v.T + (h @ self.omega)[:, None]

    def step(self, h: Float[Tensor, "m d"], target: Int[Tensor, " m"]) -> tuple[Tensor, Float[Tensor, "m d"]]:
        """One step of SGD on a batch: its mean loss, and the gradient in ``h``, both at the weights before it."""
        self._check(h, target)
        h = h.detach()
        rows = self.v[target] @ self.u + self.omega  # W_c, (m, d)
        qh, s = h @ self.q, h @ self.w
        own, squares = (rows * h).sum(1), (qh * h).sum(1)
        losses, alpha, beta, gamma = self._slopes(s, squares, own)
        p = alpha[:, None] * self.w + beta[:, None] * qh + gamma[:, None] * rows  # G W, the gradient in h
        self._move(h, target, (alpha, beta, gamma), self._gram(h, target, rows, qh, s, (alpha, beta, gamma)), p, s)
        return losses, p

    def _slopes(self, s: Tensor, q: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mean loss and its slopes (m,): alpha in the sum, beta twice that in the squares, gamma in the score."""
        at_s, at_q, at_own = (t.detach().requires_grad_() for t in (s, q, own))
        with torch.enable_grad():
            loss = self.loss.value(at_s, at_q, at_own, self.classes).mean()
            found = torch.autograd.grad(loss, (at_s, at_q, at_own), allow_unused=True)
        alpha, half, gamma = (torch.zeros_like(s) if g is None else g for g in found)
        return loss.detach(), alpha, 2 * half, gamma

    def _gram(
        self, h: Tensor, target: Tensor, rows: Tensor, qh: Tensor, s: Tensor, slopes: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "m m"]:
        """G G^T of the gradient G (m, D) in the scores, which is not formed."""
        alpha, beta, gamma = slopes
        sums, cross = beta * s + gamma, beta[:, None] * (h @ rows.T) * gamma
        same = gamma[:, None] * (target[:, None] == target) * gamma
        ones = self.classes * torch.outer(alpha, alpha) + torch.outer(alpha, sums) + torch.outer(sums, alpha)
        return ones + beta[:, None] * (qh @ h.T) * beta + cross + cross.T + same

    def _move(
        self,
        h: Tensor,
        target: Tensor,
        slopes: tuple[Tensor, Tensor, Tensor],
        gram: Float[Tensor, "m m"],
        p: Float[Tensor, "m d"],
        s: Tensor,
    ) -> None:
        """W <- W - lr G^T h, in its factors and in Q and w."""
        (alpha, beta, gamma), lr = slopes, self.lr
        change = p.T @ h
        self.q = self.q - lr * (change + change.T) + lr**2 * h.T @ gram @ h
        self.w = self.w - lr * (self.classes * alpha + beta * s + gamma) @ h
        scaled = lr * beta[:, None] * h
        kernel = torch.eye(len(h)).to(h) - scaled @ h.T
        drift, rows = float(torch.linalg.slogdet(kernel).logabsdet), gamma[:, None] * h
        old_inverse, self.u = self.u_inverse, self.u - (self.u @ h.T) @ scaled
        self.omega = self.omega - h.T @ (scaled @ self.omega) - lr * alpha @ h
        if drift < -DRIFT:
            self._start(self.weight().index_add_(0, target, rows, alpha=-lr))
            return
        self.u_inverse = old_inverse + h.T @ torch.linalg.solve(kernel, scaled @ old_inverse)
        self.v.index_add_(0, target, rows @ self._row_inverse(old_inverse), alpha=-lr)
        self.drift += drift
        self.steps += 1
        if abs(self.drift) > DRIFT or self.steps >= REFACTOR:
            self.refactor()

    def _row_inverse(self, old: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
        """What takes a row's change into V: the inverse of U after its step."""
        return self.u_inverse

    def refactor(self) -> None:
        """Multiply W out, in O(D d^2): V becomes W and U the identity."""
        self._start(self.weight())

    def rescale(self, norm: float = 1.0) -> None:
        """Give W the Frobenius norm ``norm`` > 0, at the cost of ``refactor`` at most.

        ZLoss does not see the scale of W, whose norm grows under SGD while a rate's effect falls: there it changes no
        loss and undoes this. Other losses change. InputError for another norm, and where W is zero.
        """
        size = float(self.q.trace().clamp_min(0).sqrt())
        if not (0 < norm < math.inf and size > 0):
            raise InputError(f"SphericalLinear: norm={norm} for a weight of norm {size}; expected finite, both above 0")
        factor = norm / size
        self.u, self.omega, self.w = factor * self.u, factor * self.omega, factor * self.w
        self.u_inverse, self.q = self.u_inverse / factor, factor**2 * self.q
        self.drift += self.d * math.log(factor)
        if abs(self.drift) > DRIFT:
            self.refactor()

    def _check(self, h: Tensor, target: Tensor) -> None:
        if h.dim() != 2 or len(h) == 0 or h.shape[1] != self.d or h.dtype != self.v.dtype:
            found = f"{h.dtype} of shape {tuple(h.shape)}"
            raise InputError(f"SphericalLinear: h is {found}; expected {self.v.dtype} (m, {self.d}), m >= 1")
        if not torch.isfinite(h).all():
            raise InputError("SphericalLinear: h holds NaN or infinite values; expected finite")
        check_labels("SphericalLinear", target, len(h), self.classes)
