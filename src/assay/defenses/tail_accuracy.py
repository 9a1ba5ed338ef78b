"""Accuracy on the classes that fare worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class TailAccuracy(NamedTuple):
    """The mean ``accuracy`` over ``classes``, worst first, and that of every class."""

    accuracy: float
    classes: tuple[int, ...]
    per_class: Tensor


def tail_robust_accuracy(
    correct: Bool[Tensor, " n"], y: Int[Tensor, " n"], frac: float = 0.3, classes: Sequence[int] | None = None
) -> TailAccuracy:
    """RA-Tail: the mean accuracy over the fraction ``frac`` of classes that have the lowest, at least one class (Sow et
    al., 2024, arXiv:2308.00311, section 5).

    ``correct`` (n,) says which samples hold under attack. Each model has its own tail, unless ``classes`` fixes it: the
    paper leaves open which is meant. InputError for frac outside (0, 1], empty input, and classes without samples.
    """
    check_labels("tail_robust_accuracy", y, len(correct))
    if not 0 < frac <= 1 or len(y) == 0:
        raise InputError(f"tail_robust_accuracy: frac={frac} of {len(y)} samples; expected (0, 1] and one or more")
    counts = torch.bincount(y)
    rates = torch.bincount(y, correct.double(), minlength=len(counts)) / counts
    if (counts == 0).any():
        raise InputError(f"tail_robust_accuracy: class {int(counts.argmin())} has no sample; expected some of each")
    chosen = list(classes) if classes is not None else rates.argsort()[: max(round(frac * len(rates)), 1)].tolist()
    if not chosen or min(chosen) < 0 or max(chosen) >= len(rates):
        raise InputError(f"tail_robust_accuracy: classes {chosen}; expected some of 0 to {len(rates) - 1}")
    return TailAccuracy(float(rates[chosen].mean()), tuple(chosen), rates)
