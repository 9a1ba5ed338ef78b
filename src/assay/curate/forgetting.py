"""Forgetting events: samples that were learnt and are got wrong again."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


class ForgettingTracker:
    """Counts, for each of ``n`` samples, the changes from correct to wrong between its successive presentations
    (Toneva et al., 2019, arXiv:1812.05159, definition 1; Paul et al., 2021, arXiv:2107.07075, section 2.3).

    ``update`` takes what one mini-batch showed, before its step. Raises InputError for positions outside [0, n) or one
    twice in a batch.
    """

    def __init__(self, n: int) -> None:
        if n < 1:
            raise InputError(f"ForgettingTracker: n={n}; expected at least one sample")
        self.counts_ = torch.zeros(n, dtype=torch.int64)
        self.learnt_ = torch.zeros(n, dtype=torch.bool)
        self._correct = torch.zeros(n, dtype=torch.bool)

    def update(self, index: Int[Tensor, " b"], correct: Bool[Tensor, " b"]) -> None:
        """Positions of the samples of a mini-batch, and whether each was classified correctly."""
        index, correct = index.cpu(), correct.cpu()
        n = len(self.counts_)
        if (
            index.shape != correct.shape
            or index.dim() != 1
            or index.dtype != torch.int64
            or correct.dtype != torch.bool
        ):
            raise InputError(
                f"ForgettingTracker: index {index.dtype} {tuple(index.shape)}, correct {correct.dtype} "
                f"{tuple(correct.shape)}; expected int64 and bool of one shape (b,)"
            )
        if len(index) and (index.min() < 0 or index.max() >= n or len(index.unique()) < len(index)):
            raise InputError(
                f"ForgettingTracker: positions outside 0 to {n - 1} or repeated; expected each once a batch"
            )
        self.counts_[index] += (self._correct[index] & ~correct).long()
        self.learnt_[index] |= correct
        self._correct[index] = correct

    def scores(self) -> Float[Tensor, " n"]:
        """The counts; infinity for samples that were never correct, as in the official code."""
        return self.counts_.double().masked_fill(~self.learnt_, torch.inf)


def forget_scores(correct: Bool[Tensor, "t n"]) -> Float[Tensor, " n"]:
    """The scores of ForgettingTracker for n samples that are all presented t >= 1 times: row i is presentation i."""
    if correct.dim() != 2 or correct.dtype != torch.bool or 0 in correct.shape:
        raise InputError(f"forget_scores: {correct.dtype} {tuple(correct.shape)}; expected bool (t, n), t and n >= 1")
    counts = (correct[:-1] & ~correct[1:]).sum(0).double()
    return counts.masked_fill(~correct.any(0), torch.inf)
