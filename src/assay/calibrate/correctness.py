"""The correctness-aware objective: a confidence near 1 where the prediction is right, near 0 where it is wrong."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.runtime.errors import InputError


class CorrectnessAwareLoss(nn.Module):
    """|c - 1{right}|^p, c the largest probability (Liu et al., 2024, arXiv:2404.13016; squared as in the code, p = 2).

    Only the top confidence and the bit "was the prediction right" enter, not the label. A confidence c for samples that
    are right with probability q costs least at c = q. ``balance``, as the official code has it, weights right samples
    by 1 - a and wrong ones by a, where a is the batch's accuracy, and divides by the sum of the weights: the optimum is
    then q (1 - a) / (q (1 - a) + (1 - q) a), which orders samples alike but is calibrated at a = 1/2 only; a batch that
    is all right or all wrong keeps equal weights. ``confidence`` (n,) in [0, 1]; ``correct`` (n,) bool. Returns a
    scalar in [0, 1]; (n,) under "none", whose mean is that of "mean" in either case. InputError for other input.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self, p: Literal[1, 2] = 2, balance: bool = False, reduction: Literal["mean", "sum", "none"] = "mean"
    ) -> None:
        super().__init__()
        if p not in (1, 2):
            raise InputError(f"CorrectnessAwareLoss: p={p}; expected 1 or 2")
        check_reduction("CorrectnessAwareLoss", reduction)
        self.p, self.balance, self.reduction = p, balance, reduction

    def forward(self, confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``confidence`` where ``correct`` says which predictions are right."""
        self._check(confidence, correct)
        each = (confidence - correct.to(confidence)).abs() ** self.p
        if self.balance and correct.any() and not correct.all():
            a = correct.double().mean()
            weight = torch.where(correct, 1 - a, a)
            each = each * (weight / weight.mean()).to(each)
        return reduced(each, self.reduction)

    def from_logits(
        self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], temperature: Tensor | float = 1.0
    ) -> Float[Tensor, ...]:
        """The loss of the confidences max softmax(logits / T); T > 0 is a number or (n,)."""
        check_logits("CorrectnessAwareLoss", logits, target)
        return self(top_confidence(logits, temperature), logits.argmax(1) == target)

    def _check(self, confidence: Tensor, correct: Tensor) -> None:
        if confidence.dim() != 1 or len(confidence) == 0 or not confidence.is_floating_point():
            shape = f"{confidence.dtype} of shape {tuple(confidence.shape)}"
            raise InputError(f"CorrectnessAwareLoss: confidence is {shape}; expected floats (n,), n >= 1")
        if not bool(((confidence >= 0) & (confidence <= 1 + 1e-6)).all()):
            raise InputError("CorrectnessAwareLoss: confidence leaves [0, 1] or is NaN; expected probabilities")
        if correct.dtype != torch.bool or correct.shape != confidence.shape:
            shape = f"{correct.dtype} of shape {tuple(correct.shape)}"
            raise InputError(f"CorrectnessAwareLoss: correct is {shape}; expected bool ({len(confidence)},)")

    def extra_repr(self) -> str:
        return f"p={self.p}, balance={self.balance}, reduction={self.reduction!r}"


def top_confidence(logits: Float[Tensor, "n c"], temperature: Tensor | float) -> Float[Tensor, " n"]:
    """max softmax(logits / T) (n,); the temperature T > 0 is a number or (n,)."""
    t = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
    if t.shape not in ((), (1,), (len(logits),)) or not bool((t > 0).all()):
        given = f"temperature {tuple(t.shape)}" + (f", least {float(t.min())}" if t.numel() else "")
        raise InputError(f"top_confidence: {given}; expected a number or ({len(logits)},), above 0")
    return (logits / t.reshape(-1, 1)).softmax(1).amax(1)


def narrow_wrong(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"], temperature: float = 1.0
) -> Bool[Tensor, " n"]:
    """The wrong predictions that cross-entropy makes more confident: z_y > E_p[z], p = softmax(z / T).

    The slope of cross-entropy in T is (z_y - E_p[z]) / T^2, so that there a lower T lowers it, while the
    correctness-aware loss of a wrong prediction always falls with a higher T. Empty for two classes. ``temperature``
    > 0. InputError for other input.
    """
    check_logits("narrow_wrong", logits, target)
    if not 0 < temperature < float("inf"):
        raise InputError(f"narrow_wrong: temperature={temperature}; expected a finite number > 0")
    mean = ((logits / temperature).softmax(1) * logits).sum(1)
    return (logits.argmax(1) != target) & (logits.gather(1, target[:, None])[:, 0] > mean)
