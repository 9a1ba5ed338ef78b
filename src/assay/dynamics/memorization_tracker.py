"""Whether a network learns the true classes of wrongly labelled samples or their labels, while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.training import State


class MemorizationTracker:
    """What is predicted on training samples of known truth (Liu et al., 2020, arXiv:2007.00151, Figure 1).

    A hook of training (``hooks=[tracker]``), which measures every ``every`` steps and after the last one; a loop of
    one's own calls ``update``. ``data`` are the training samples with the labels that are learnt from, ``truth`` (n,)
    their true classes. ``history`` holds for each measurement "step", "clean", the share of rightly labelled samples
    whose label is predicted, and of the wrongly labelled ones the shares predicted as their "true" class, as their
    label ("memorised") and as "other" classes; NaN where there is no such sample. Networks run in evaluation mode;
    of several the mean of the logits counts. InputError for a truth that is no class of the data, and every < 1.
    """

    kind: ClassVar[str] = "function"

    def __init__(self, data: Data, truth: Int[Tensor, " n"], *, every: int = 1) -> None:
        check_inputs("MemorizationTracker", data.x, data.y, data.bounds)
        check_labels("MemorizationTracker: truth", truth, len(data), len(data.classes))
        if every < 1:
            raise InputError(f"MemorizationTracker: every={every}; expected at least 1")
        self.data, self.truth, self.every = data, truth, every
        self.history: list[dict[str, float]] = []

    def update(self, *models: nn.Module, step: int = 0) -> dict[str, float]:
        """Measure now; gives the entry of ``history``."""
        if not models:
            raise InputError("MemorizationTracker: no network; expected at least one")
        guess = torch.stack([predict(model, self.data.x) for model in models]).mean(0).argmax(1)
        wrong = self.data.y != self.truth
        true, memorised = (guess == self.truth)[wrong].float(), (guess == self.data.y)[wrong].float()
        found = {
            "step": float(step),
            "clean": float((guess == self.truth)[~wrong].float().mean()),
            "true": float(true.mean()),
            "memorised": float(memorised.mean()),
            "other": float((1 - true - memorised).mean()),
        }
        self.history.append(found)
        return found

    def __call__(self, models: Mapping[str, nn.Module], state: State) -> None:
        """Measure where this step is due."""
        if state.step % self.every == 0 or state.step == state.total:
            self.update(*models.values(), step=state.step)
