"""Scores averaged over noisy copies of an input, and the copies' outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.calibrate import Outputs
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, predict
from assay.runtime.random import torch_rng


@dataclass(frozen=True)
class SmoothedScores:
    """Mean (n, c) in [0, 1] and unbiased variance (n, c) >= 0 of a score over ``draws`` noisy copies, float64.

    Raises InputError on means outside [0, 1], for the bounds that are built on them need that range, on variances below
    0, and on fewer than two draws.
    """

    mean: Float[Tensor, "n c"]
    variance: Float[Tensor, "n c"]
    draws: int

    def __post_init__(self) -> None:
        check_inputs("smoothed scores: mean", self.mean, bounds=(0.0, 1.0))
        if self.variance.shape != self.mean.shape or not (self.variance >= 0).all():
            raise InputError(f"smoothed scores: variance; expected {tuple(self.mean.shape)} numbers, none below 0")
        if self.draws < 2:
            raise InputError(f"smoothed scores: {self.draws} draws; expected at least 2")

    @classmethod
    def of(cls, scores: Float[Tensor, "v n c"]) -> SmoothedScores:
        """The mean and variance of scores in [0, 1] over their first dimension; InputError outside that range."""
        if len(scores) < 2:
            raise InputError(f"smoothed scores: {len(scores)} noisy copies; expected at least 2")
        low, high = float(scores.min()), float(scores.max())
        if low < -1e-9 or high > 1 + 1e-9:
            raise InputError(
                f"smoothed scores: scores span [{low:.4g}, {high:.4g}]; expected [0, 1] (a PTT transform maps to it)"
            )
        return cls(scores.mean(0).clamp(0, 1), scores.var(0), len(scores))

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows: Tensor | slice) -> SmoothedScores:
        """The samples that a mask, positions or a slice selects."""
        return SmoothedScores(self.mean[rows], self.variance[rows], self.draws)

    @classmethod
    def join(cls, parts: list[SmoothedScores]) -> SmoothedScores:
        """The samples of several parts with equally many draws, one after the other."""
        if len({p.draws for p in parts}) != 1:
            raise InputError(f"smoothed scores: parts of {[p.draws for p in parts]} draws; expected equally many")
        return cls(torch.cat([p.mean for p in parts]), torch.cat([p.variance for p in parts]), parts[0].draws)


def noisy_outputs(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    *,
    sigma: float,
    draws: int,
    seed: int = 0,
    index: Int[Tensor, " n"] | None = None,
    batch_size: int = BATCH,
) -> Outputs:
    """Outputs whose ``views`` (draws, n, c) are the logits of x + ``sigma`` * standard normal noise.

    The copies may leave the data's bounds, as smoothing needs. The noise of a sample depends on (seed, its index)
    alone; ``index`` (default 0 to n - 1) names the samples. ``logits`` are log mean probabilities over the copies.
    """
    where = "noisy_outputs"
    check_inputs(where, x)
    index = torch.arange(len(x)) if index is None else index
    check_labels(f"{where}: index", index, len(x))
    if not 0 < sigma < float("inf") or draws < 1:
        raise InputError(f"{where}: sigma = {sigma}, draws = {draws}; expected a finite sigma > 0 and draws >= 1")
    parts = []
    for rows in torch.arange(len(x)).split(max(1, batch_size // draws)):
        # A generator for each sample fills all of its copies at once: several times as fast as counter-based draws.
        noise = [
            torch.randn(draws, *x.shape[1:], generator=torch_rng(seed, "noisy_outputs", i))
            for i in index[rows].tolist()
        ]
        copies = x[rows, None] + sigma * torch.stack(noise).to(x)
        logits = predict(model, copies.flatten(0, 1), batch_size=batch_size)
        parts.append(logits.reshape(len(rows), draws, -1).transpose(0, 1))
    views = torch.cat(parts, 1)
    return Outputs(views.double().softmax(-1).mean(0).clamp_min(1e-30).log(), views=views, index=index)
