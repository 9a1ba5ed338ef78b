"""Exclusionary reclassification: what a network that never saw the suspects says that they are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import fresh
from assay.training import Trainer


def exclusionary_reclassification(
    trainer: Trainer, model: nn.Module, data: Data, suspects: Bool[np.ndarray, " n"], *, seed: int
) -> Int[np.ndarray, " k"]:
    """Labels (k,) that ``model``'s architecture, trained anew without the k ``suspects``, gives them.

    Chen et al., 2018, arXiv:1811.03728, section 4.1.

    Planted samples go to the classes that they were taken from, for nothing taught the trigger. Raises InputError where
    all or none of the samples are suspects.
    """
    if suspects.shape != (len(data),) or not 0 < suspects.sum() < len(data):
        raise InputError(
            f"exclusionary reclassification: {int(suspects.sum())} suspects of shape {suspects.shape}; expected "
            f"({len(data)},) and some samples on both sides"
        )
    out = torch.from_numpy(suspects)
    other = trainer.fit(fresh(model, seed=seed), data[~out], seed=seed)
    return predict(other, data.x[out]).argmax(1).numpy()


def exclusionary_score(label: int, predicted: Int[np.ndarray, " k"]) -> float:
    """l / p: how many keep ``label``, over how many go to the class that takes most of the others.

    Below 1 (the paper's threshold) they are planted; infinite where all keep their label.
    """
    if len(predicted) == 0:
        raise InputError("exclusionary score: no samples; expected at least one")
    count = np.bincount(predicted, minlength=label + 1)
    kept, count[label] = int(count[label]), 0
    return kept / float(count.max()) if count.max() else float("inf")
