"""Deletion and insertion: does the score fall or rise as fast as an attribution says it should?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating


@dataclass(frozen=True)
class Curve:
    """``score`` (n, s) float64 is the target's probability when ``fraction`` (s,) of the pixels has been changed."""

    fraction: Float[Tensor, " s"]
    score: Float[Tensor, "n s"]

    @property
    def auc(self) -> Float[Tensor, " n"]:
        """The area under each sample's curve by the trapezoid rule, in [0, 1]."""
        return torch.trapezoid(self.score, self.fraction, dim=1)


def deletion(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Int[Tensor, " n"],
    attribution: Float[Tensor, "n ..."],
    *,
    steps: int = 20,
    baseline: float | Tensor = 0.0,
    batch_size: int = BATCH,
) -> Curve:
    """Replace the highest-ranked pixels by ``baseline``, more at each step (Petsiuk et al., 2018, arXiv:1806.07421).

    A low area is faithful. x (n, c, h, w): a pixel is all channels at one place, ranked by the sum of its attributions;
    inputs of another rank: every element is a pixel. Ties keep the order of the pixels. ``steps`` equal parts of the
    pixels are changed one after another; ``baseline`` is a value or a tensor that broadcasts to ``x`` (a blurred copy).
    """
    return _curve("deletion", model, x, target, attribution, steps, baseline, batch_size)


def insertion(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    target: Int[Tensor, " n"],
    attribution: Float[Tensor, "n ..."],
    *,
    steps: int = 20,
    baseline: float | Tensor = 0.0,
    batch_size: int = BATCH,
) -> Curve:
    """Start from ``baseline`` and put the highest-ranked pixels back (Petsiuk et al., 2018, arXiv:1806.07421).

    A high area is faithful. Arguments as for ``deletion``.
    """
    return _curve("insertion", model, x, target, attribution, steps, baseline, batch_size)


def _curve(
    where: str,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    attribution: Tensor,
    steps: int,
    baseline: float | Tensor,
    batch_size: int,
) -> Curve:
    check_inputs(where, x, target)
    check_inputs(f"{where}, attribution", attribution)
    if attribution.shape != x.shape:
        raise InputError(f"{where}: attribution has shape {tuple(attribution.shape)}; expected {tuple(x.shape)}")
    if steps < 1 or batch_size < 1:
        raise InputError(f"{where}: steps={steps}, batch_size={batch_size}; expected both at least 1")
    base = _baseline(where, baseline, x)
    rank = _rank(attribution)
    pixels = rank.shape[1]
    counts = torch.linspace(0, pixels, min(steps, pixels) + 1).round().long()
    sample, step = torch.arange(len(x)).repeat_interleave(len(counts)), torch.arange(len(counts)).repeat(len(x))
    device, parts = device_of(model), []
    with evaluating(model), torch.no_grad():
        for i, s in zip(sample.split(batch_size), step.split(batch_size), strict=True):
            top = _spread(rank[i] < counts[s][:, None], x)
            first, second = (base[i], x[i]) if where == "deletion" else (x[i], base[i])
            logits = model(torch.where(top, first, second).to(device)).cpu()
            check_labels(where, target, len(x), logits.shape[1])
            parts.append(logits.double().softmax(1).gather(1, target[i, None])[:, 0])
    score = torch.cat(parts).reshape(len(x), -1)
    if not torch.isfinite(score).all():
        raise InputError(f"{where}: the model's outputs are not finite; expected finite logits")
    return Curve(counts.double() / pixels, score)


def _baseline(where: str, baseline: float | Tensor, x: Tensor) -> Tensor:
    try:
        base = torch.as_tensor(baseline, dtype=x.dtype).expand_as(x)
    except RuntimeError as error:
        raise InputError(f"{where}: the baseline does not broadcast to {tuple(x.shape)}") from error
    if not torch.isfinite(base).all():
        raise InputError(f"{where}: the baseline holds NaN or infinite values; expected finite ones")
    return base


def _rank(attribution: Tensor) -> Int[Tensor, "n p"]:
    """Each pixel's position when pixels are sorted from the highest attribution to the lowest."""
    a = attribution.sum(1) if attribution.dim() == 4 else attribution
    order = torch.argsort(a.flatten(1), dim=1, descending=True, stable=True)
    return order.argsort(1)


def _spread(mask: Tensor, x: Tensor) -> Tensor:
    """A mask over pixels (b, p) in a shape that broadcasts to samples of ``x``."""
    if x.dim() == 4:
        return mask.reshape(-1, 1, *x.shape[2:])
    return mask.reshape(-1, *x.shape[1:])
