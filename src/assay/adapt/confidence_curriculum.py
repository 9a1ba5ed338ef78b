"""Training from the samples that a first run is sure of to those that it is not, with labels as soft as it is sure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.training import State, Trainer

FIELD = "confidence"


def smooth_labels(y: Int[Tensor, " n"], confidence: Float[Tensor, " n"], classes: int) -> Float[Tensor, "n c"]:
    """p on the label and (1 - p) / (c - 1) elsewhere, p the confidence of each sample (Ao et al., 2023,
    "Confidence-Aware Calibration and Scoring Functions for Curriculum Learning": MCLS with a model's confidence, HCLS
    with that of people). The official code softens by class means instead. InputError for a confidence outside [0, 1].
    """
    if classes < 2:
        raise InputError(f"smooth_labels: {classes} classes; expected at least two")
    check_labels("smooth_labels", y, len(y), classes)
    _check_confidence("smooth_labels", confidence, len(y))
    confidence = confidence if confidence.is_floating_point() else confidence.float()
    rest = (1 - confidence) / (classes - 1)
    return rest[:, None].repeat(1, classes).scatter(1, y[:, None], confidence[:, None])


@dataclass(frozen=True, kw_only=True)
class ConfidenceCurriculum(Trainer):
    """Cross-entropy with labels smoothed by confidence, on samples of a confidence of mu and more; mu falls to 0 (Ao et
    al., 2023, the component of Ao, 2023, arXiv:2308.03176; pacing as in the official code).

    The confidence of a sample is the field "confidence" (n,) in [0, 1] (people's agreement, say), or where there is
    none the probability of its label after a first plain run of the same plan from the same start: twice the work. The
    first mu lets a share ``start`` of the samples through; it falls evenly, epoch by epoch, to 0 at ``until`` of the
    training (30 of 200 epochs in the code). ``smooth`` off keeps hard labels. A batch without such a sample changes
    nothing but what the optimiser carries on. InputError for other options and confidences.
    """

    start: float = 0.75
    until: float = 0.15
    smooth: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1 or not 0 < self.until <= 1:
            raise InputError(f"ConfidenceCurriculum: start={self.start}, until={self.until}; expected shares in (0, 1]")

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        """The trained model; without the field the first run comes before it."""
        check_inputs("ConfidenceCurriculum", data.x, data.y, data.bounds)
        if FIELD not in data.fields:
            first = predict(self.plain().fit(model, data, seed=seed), data.x).softmax(1)
            data = replace(data, fields={**data.fields, FIELD: first.gather(1, data.y[:, None])[:, 0]})
        _check_confidence("ConfidenceCurriculum", data.fields[FIELD], len(data))
        return super().fit(model, data, seed=seed, **options)

    def keep(self, confidence: Float[Tensor, " b"], state: State) -> Bool[Tensor, " b"]:
        """Which samples take part at this epoch."""
        highest = float(torch.quantile(state.data.fields[FIELD].double(), 1 - self.start))
        epochs = state.total / -(-len(state.data) // self.batch_size)
        return confidence >= highest * max(1 - state.epoch / (self.until * epochs), 0)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, ""]:
        confidence, logits = batch.fields[FIELD].to(batch.x), model(batch.x)
        target = smooth_labels(batch.y, confidence if self.smooth else torch.ones_like(confidence), logits.shape[1])
        kept = self.keep(confidence, state)
        each = F.cross_entropy(logits, target, reduction="none")
        return (each * kept).sum() / kept.sum().clamp_min(1)


def _check_confidence(where: str, confidence: Tensor, n: int) -> None:
    if confidence.shape != (n,) or not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise InputError(f"{where}: confidence {tuple(confidence.shape)}; expected ({n},) with values in [0, 1]")
