"""Forgetting: how close an unlearned model comes to one that never saw the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.subject import Subject

REFERENCE = "retrained"
Row = dict[str, Any]


def forgetting(
    subject: Subject,
    models: Mapping[str, nn.Module],
    forget: Data,
    retain: Data,
    seconds: Mapping[str, float],
    *,
    seed: int,
) -> list[Row]:
    """One row a model of ``models``; the one named "retrained" is the reference. ``seconds``: what making each took.

    Keys: ``model``; the rates ``forget_accuracy``, ``retain_accuracy``, ``test_accuracy``, and where exactly one whole
    class is forgotten ``test_accuracy_forgotten`` and ``test_accuracy_others`` (else None), each with ``_low`` and
    ``_high`` (Wilson); ``membership_auc`` with its bootstrap interval; ``seconds``; ``time_ratio`` to retraining (below
    1 is faster); ``gap``, the mean absolute difference to the retrained model over forget, retain and test accuracy
    (after class forgetting: on the other classes) and the AUC (Fan et al., 2024, arXiv:2310.12508, "average gap").

    ``membership_auc``: how well a low cross-entropy tells the forgotten samples from test samples of the same classes
    (Yeom et al., 2018, arXiv:1709.01604): 0.5 is no trace; None where the test set has none of these classes. Judge it
    against the retrained model's, which differs from 0.5 by chance and, for a class, by how its samples were drawn.
    """
    rows = [_row(name, model, subject.test, forget, retain, seed) for name, model in models.items()]
    reference = next((row for row in rows if row["model"] == REFERENCE), None)
    for row in rows:
        spent, whole = seconds.get(row["model"]), seconds.get(REFERENCE)
        row["seconds"] = spent
        row["time_ratio"] = spent / whole if spent is not None and whole else None
        row["gap"] = _gap(row, reference) if reference is not None else None
    return rows


def _row(name: str, model: nn.Module, test: Data, forget: Data, retain: Data, seed: int) -> Row:
    parts = {"forget": forget, "retain": retain, "test": test}
    logits = {k: predict(model, part.x) for k, part in parts.items()}
    correct = {k: (logits[k].argmax(1) == part.y).numpy() for k, part in parts.items()}
    row: Row = {"model": name}
    for k, part in parts.items():
        row |= _rate(f"{k}_accuracy", correct[k], part.index)
    whole = len(forget.y.unique()) == 1 and not bool((retain.y == forget.y[0]).any())
    same = torch.isin(test.y, forget.y.unique())
    for key, mask in (("test_accuracy_forgotten", same), ("test_accuracy_others", ~same)):
        row |= _rate(key, correct["test"][mask.numpy()] if whole else np.zeros(0, bool), test.index[mask])
    losses = F.cross_entropy(logits["forget"], forget.y, reduction="none")
    outside = F.cross_entropy(logits["test"][same], test.y[same], reduction="none")
    return row | _membership(losses, outside, seed)


def _rate(key: str, correct: np.ndarray, index: Tensor) -> Row:
    if len(correct) == 0:
        return _interval(key, None, None, None)
    metric, _ = measured(key, correct.astype(float), index.numpy())
    return _interval(key, metric.value, metric.low, metric.high)


def _membership(members: Tensor, others: Tensor, seed: int) -> Row:
    if len(others) == 0:
        return _interval("membership_auc", None, None, None)
    score = -torch.cat([members, others]).double().numpy()
    label = np.repeat([1.0, 0.0], [len(members), len(others)])
    values = np.stack([score, label], 1)
    metric, _ = measured("membership_auc", values, np.arange(len(values)), statistic="auroc", seed=seed)
    return _interval("membership_auc", metric.value, metric.low, metric.high)


def _interval(key: str, value: float | None, low: float | None, high: float | None) -> Row:
    return {key: value, f"{key}_low": low, f"{key}_high": high}


def _gap(row: Row, reference: Row) -> float:
    test = "test_accuracy" if row["test_accuracy_others"] is None else "test_accuracy_others"
    keys = ("forget_accuracy", "retain_accuracy", test, "membership_auc")
    return float(np.mean([abs(row[k] - reference[k]) for k in keys if row[k] is not None]))
