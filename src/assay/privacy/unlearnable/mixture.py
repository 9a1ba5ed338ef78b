"""What a learner gets out of protected data that come mixed with clean ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import torch_rng


@dataclass(frozen=True)
class MixtureRow:
    """Accuracy on clean test data after training with a ``share`` of the samples protected, and on the others alone."""

    share: float
    mixture: float
    clean_only: float | None


def mixture_protocol(
    train: Callable[[Data], nn.Module],
    clean: Data,
    protected: Data,
    shares: Sequence[float],
    test: Data,
    *,
    seed: int = 0,
) -> list[MixtureRow]:
    """Each sample is taken either as it is or protected, drawn once for every share (Zhang et al., 2025,
    arXiv:2511.08191, the authors' scripts).

    Protection holds in the mixed case where ``mixture`` is at most ``clean_only``: the protected samples taught
    nothing. At a share of 1 there is nothing else to train on, and ``clean_only`` is None. Raises InputError where the
    two sets are not versions of the same samples, and for shares outside [0, 1].
    """
    if not torch.equal(clean.index, protected.index) or clean.shape != protected.shape:
        raise InputError("mixture_protocol: clean and protected differ in index or shape; expected the same samples")
    if not shares or min(shares) < 0 or max(shares) > 1:
        raise InputError(f"mixture_protocol: shares={list(shares)}; expected numbers in [0, 1]")
    order, rows = torch.randperm(len(clean), generator=torch_rng(seed, "mixture")), []
    for share in shares:
        taken = torch.zeros(len(clean), dtype=torch.bool)
        taken[order[: round(share * len(clean))]] = True
        wide = taken.view(-1, *[1] * (clean.x.dim() - 1))
        mixture = _right(train(clean.with_x(torch.where(wide, protected.x, clean.x))), test)
        alone = None if taken.all() else _right(train(clean[~taken]), test)
        rows.append(MixtureRow(share, mixture, alone))
    return rows


def _right(model: nn.Module, test: Data) -> float:
    return float((predict(model, test.x).argmax(1) == test.y).double().mean())
