"""Checks that every method makes of its inputs, each raising InputError with what, where and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.runtime.errors import InputError


def check_inputs(where: str, x: Tensor, y: Tensor | None = None, bounds: tuple[float, float] | None = None) -> None:
    """``x`` is a non-empty finite floating tensor in bounds; ``y`` holds one int64 label a sample."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = getattr(x, "dtype", type(x).__name__)
        raise InputError(f"{where}: x is {kind}; expected a floating-point tensor")
    if x.dim() < 2 or len(x) == 0:
        raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected (n, ...) with n >= 1")
    if not torch.isfinite(x).all():
        raise InputError(f"{where}: x has {int((~torch.isfinite(x)).sum())} NaN or infinite values; expected finite")
    if bounds is not None and (x.min() < bounds[0] - 1e-6 or x.max() > bounds[1] + 1e-6):
        raise InputError(f"{where}: x spans [{x.min():.4g}, {x.max():.4g}]; expected values in {list(bounds)}")
    if y is not None:
        check_labels(where, y, len(x))


def check_labels(where: str, y: Tensor, n: int, classes: int | None = None) -> None:
    """One int64 label a sample, in [0, classes)."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (n,):
        kind = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"{where}: labels are {kind}; expected int64 of shape ({n},)")
    if len(y) and (y.min() < 0 or (classes is not None and y.max() >= classes)):
        top = f"{classes - 1}" if classes is not None else "the number of classes - 1"
        raise InputError(f"{where}: labels span [{int(y.min())}, {int(y.max())}]; expected 0 to {top}")
