"""AnyLoss: one minus any metric of a confusion matrix, made differentiable by amplified probabilities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.binary_cross_entropy import BinaryCrossEntropy, binary_logits, check_scores
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown

Metric = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
METRICS = ("accuracy", "balanced-accuracy", "fbeta", "gmean")


class SoftConfusion(NamedTuple):
    """The cells of a confusion matrix, scalars that sum to the number of samples."""

    tp: Tensor
    fn: Tensor
    fp: Tensor
    tn: Tensor


def soft_confusion(prob: Float[Tensor, " n"], target: Int[Tensor, " n"], L: float | None = 73.0) -> SoftConfusion:
    """The confusion matrix of amplified probabilities (Han et al., 2024, arXiv:2405.14745).

    a = 1 / (1 + exp(-L (p - 0.5))); TP sums t a, FP (1 - t) a, FN t (1 - a) and TN (1 - t) (1 - a). ``prob`` (n,) in
    [0, 1], ``target`` (n,) int64 in {0, 1}, ``L`` > 0, or None for a = p. Raises InputError for other input.
    """
    loss = AnyLoss(L=L, from_logits=False)
    if not isinstance(prob, Tensor) or prob.dim() != 1:
        shape = tuple(prob.shape) if isinstance(prob, Tensor) else type(prob).__name__
        raise InputError(f"soft_confusion: prob is {shape}; expected a tensor (n,)")
    return loss.confusion(prob, target)


class AnyLoss(nn.Module):
    """1 - metric of the soft confusion matrix of a batch (Han et al., 2024, arXiv:2405.14745).

    ``metric``: "accuracy", "fbeta" with ``beta`` > 0 (1 is F1), "gmean", "balanced-accuracy", or a function of
    (TP, FN, FP, TN) that returns a scalar tensor. "gmean" is the product of both rates, whose gradient stays finite;
    ``sqrt`` takes its root. ``L`` > 0 is the slope of the amplification: 73, the paper's, leaves values next to 0 and 1
    apart from them in double precision; None leaves probabilities as they are (for "fbeta" this is soft Dice). It acts
    on probabilities around 0.5: a confident error has almost no gradient, so that training starts well from small
    weights, or from weights trained with BinaryCrossEntropy. ``eps`` >= 0 keeps denominators positive, at 0
    as the root of the smallest normal number.

    ``scores``, finite: (n,), (n, 1) or (n, 2) logits, or where not ``from_logits`` probabilities of class 1 in [0, 1],
    which two columns hold last; ``target`` (n,) int64 in {0, 1}. Not from the paper: (n, c) scores, c >= 3, give the
    mean over classes, each against the rest. Returns a scalar, for the named metrics within rounding and ``eps`` of
    [0, 1]. It is a value of the batch and no mean over samples: batches should hold both classes. One without a class
    that a named metric needs has a loss near 1 and no gradient; ``one_sided`` counts such batches and a RuntimeWarning
    says so, or ``strict`` raises. Other input, and a metric that returns no scalar, raise InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True
    batchwise: ClassVar[bool] = True

    def __init__(
        self,
        metric: str | Metric = "fbeta",
        L: float | None = 73.0,
        beta: float = 1.0,
        eps: float = 1e-5,
        from_logits: bool = True,
        sqrt: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        if not callable(metric) and metric not in METRICS:
            raise unknown("metric of AnyLoss", str(metric), METRICS)
        if L is not None and not 0 < L < math.inf:
            raise InputError(f"AnyLoss: L={L}; expected a finite number > 0, or None")
        if not (0 < beta < math.inf and 0 <= eps < math.inf):
            raise InputError(f"AnyLoss: beta={beta}, eps={eps}; expected finite beta > 0, eps >= 0")
        self.metric, self.L, self.beta, self.eps = metric, L, float(beta), float(eps)
        self.from_logits, self.sqrt, self.strict = from_logits, sqrt, strict
        self.one_sided = 0

    def forward(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The loss of ``scores`` under ``target``."""
        p, t = self._arguments(scores, target)
        self._check_sides(t)
        return 1 - self._macro(self.amplify(p), t, self.eps or torch.finfo(p.dtype).tiny ** 0.5, self.sqrt)

    def amplify(self, p: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Probabilities pushed towards 0 and 1."""
        return p if self.L is None else torch.sigmoid(self.L * (p - 0.5))

    def confusion(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> SoftConfusion:
        """The soft confusion matrix of binary ``scores``."""
        p, t = self._arguments(scores, target)
        if p.shape[1] > 1:
            raise InputError(f"AnyLoss: confusion of {p.shape[1]} classes; expected binary scores")
        return _cells(self.amplify(p), t)[0]

    @torch.no_grad()
    def hard(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> float:
        """The metric itself of the predictions: p > 0.5, or the likeliest of three classes and more; 0/0 is 0.

        "gmean" is the root of the product here, whatever ``sqrt``.
        """
        p, t = self._arguments(scores, target)
        chosen = p > 0.5 if p.shape[1] == 1 else F.one_hot(p.argmax(1), p.shape[1])
        return float(self._macro(chosen.double(), t.double(), torch.finfo(torch.float64).tiny, True))

    def _arguments(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and targets, both (n, k): k = 1 for binary scores, else one column a class."""
        check_scores("AnyLoss", scores)
        classes = max(scores.shape[1], 2) if scores.dim() == 2 else 2
        check_labels("AnyLoss", target, len(scores), classes)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if not self.from_logits:
            if scores.min() < 0 or scores.max() > 1:
                raise InputError(
                    f"AnyLoss: probabilities span [{scores.min():.4g}, {scores.max():.4g}]; expected 0 to 1"
                )
            p = scores.reshape(len(scores), -1)
            p = p[:, 1:] if p.shape[1] == 2 else p
        else:
            p = torch.sigmoid(binary_logits(scores))[:, None] if classes == 2 else scores.softmax(1)
        t = target[:, None] if classes == 2 else F.one_hot(target, classes)
        return p, t.to(p.dtype)

    def _check_sides(self, t: Tensor) -> None:
        needed = {"fbeta": (1,), "gmean": (0, 1), "balanced-accuracy": (0, 1)}.get(str(self.metric), ())
        if all(bool((t == side).any(0).all()) for side in needed):
            return
        if self.strict:
            raise InputError(f"AnyLoss: a batch of {len(t)} lacks a class; expected both for {self.metric!r}")
        self.one_sided += 1
        warnings.warn(f"AnyLoss: a batch lacks a class that {self.metric!r} needs", RuntimeWarning, stacklevel=5)

    def _macro(self, a: Tensor, t: Tensor, eps: float, root: bool) -> Tensor:
        return torch.stack([self._value(cells, eps, root) for cells in _cells(a, t)]).mean()

    def _value(self, cells: SoftConfusion, eps: float, root: bool) -> Tensor:
        tp, fn, fp, tn = cells
        n1, n0 = tp + fn, fp + tn
        if callable(self.metric):
            value = self.metric(tp, fn, fp, tn)
            if not isinstance(value, Tensor) or value.dim():
                kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"AnyLoss: the metric returned {kind}; expected a scalar tensor")
            return value
        if self.metric == "accuracy":
            return (tp + tn) / (n1 + n0)
        if self.metric == "fbeta":
            return (1 + self.beta**2) * tp / (self.beta**2 * n1 + tp + fp + eps)
        if self.metric == "balanced-accuracy":
            return (n0 * tp + n1 * tn) / (2 * n1 * n0 + eps)
        product = tp * tn / (n1 * n0 + eps)
        return (product + eps).sqrt() if root else product  # eps inside: the root's slope at 0 is infinite

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}, L={self.L}, beta={self.beta}"


def _cells(a: Tensor, t: Tensor) -> list[SoftConfusion]:
    """One soft confusion matrix a column of ``a`` and ``t`` (n, k)."""
    # Four sums of terms >= 0: differences of sums could round below 0, where the root of G-mean has no value.
    columns = torch.stack([(u * v).sum(0) for u, v in ((t, a), (t, 1 - a), (1 - t, a), (1 - t, 1 - a))], 1)
    return [SoftConfusion(*column.unbind()) for column in columns]


class ComboLoss(nn.Module):
    """(1 - r) x class-weighted cross-entropy + r x (1 - metric of plain probabilities), 0 < ``r`` < 1.

    From the follow-up of AnyLoss (Han et al., 2024, arXiv:2405.14745): no amplification, so that cross-entropy's
    gradient carries confident errors. ``metric``, ``beta``, ``eps`` are those of AnyLoss; ``scores`` and ``target``
    are binary. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True
    batchwise: ClassVar[bool] = True

    def __init__(self, metric: str | Metric = "fbeta", r: float = 0.5, beta: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        if not 0 < r < 1:
            raise InputError(f"ComboLoss: r={r}; expected a number in (0, 1)")
        self.r = float(r)
        self.entropy, self.any = BinaryCrossEntropy(weighted=True), AnyLoss(metric, L=None, beta=beta, eps=eps)

    def forward(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """The loss of ``scores`` under ``target``."""
        return (1 - self.r) * self.entropy(scores, target) + self.r * self.any(scores, target)

    def extra_repr(self) -> str:
        return f"r={self.r}"
