"""How a guard's measures hold under perturbation, and how well its scores tell foreign inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.calibrate import ece
from assay.data import Data
from assay.data.corruptions import CORRUPTIONS
from assay.decide.scores import SCORES
from assay.decide.selective import trust_index
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import Draws
from assay.runtime.statistics import point


def perturbation_panel(
    model: nn.Module,
    data: Data,
    *,
    corruptions: Sequence[str] = ("gaussian-noise", "gaussian-blur", "contrast"),
    severities: Sequence[int] = (1, 3, 5),
    seed: int,
) -> list[dict[str, float | str | int]]:
    """Accuracy, ECE and trust index under each corruption and severity, and clean (severity 0) (Ao, 2023,
    arXiv:2308.03176, the requirement of performance under perturbation). InputError for unknown corruptions."""
    check_inputs("perturbation_panel", data.x, data.y, data.bounds)
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    rows = [_row(model, data, data.x, "clean", 0)]
    for name in corruptions:
        for level in severities:
            x = CORRUPTIONS[name].apply(data.x, level, Draws(seed, f"panel/{name}", data.index), data.bounds)
            rows.append(_row(model, data, x, name, level))
    return rows


def _row(model: nn.Module, data: Data, x: Tensor, name: str, severity: int) -> dict[str, float | str | int]:
    logits = predict(model, x)
    p, right = logits.double().softmax(1), logits.argmax(1) == data.y
    measures = {"accuracy": float(right.float().mean()), "ece": ece(p, data.y)}
    return {"corruption": name, "severity": severity, **measures, "trust": trust_index(right, SCORES["msp"](logits))}


def ood_auroc(known: Float[Tensor, "n c"], foreign: Float[Tensor, "m c"]) -> dict[str, float]:
    """Area under the ROC curve of each uncertainty score that foreign logits are above known ones: 1/2 is chance.

    InputError for logits that are not finite or not of the same classes.
    """
    check_inputs("ood_auroc: known", known)
    check_inputs("ood_auroc: foreign", foreign)
    if known.dim() != 2 or foreign.shape[1:] != known.shape[1:]:
        shapes = f"{tuple(known.shape)} and {tuple(foreign.shape)}"
        raise InputError(f"ood_auroc: logits of shapes {shapes}; expected (n, c) and (m, c)")
    label = torch.cat((torch.zeros(len(known)), torch.ones(len(foreign)))).double()
    logits = torch.cat((known, foreign)).detach()
    return {name: point("auroc", torch.stack((score(logits), label), 1).numpy()) for name, score in SCORES.items()}
