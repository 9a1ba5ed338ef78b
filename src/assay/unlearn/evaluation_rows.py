"""What one unlearned model shows, beside the model that it came from and one that never saw the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.svm import SVC
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.runtime.statistics import wilson
from assay.subject import Subject

REFERENCE = "retrained"
MOST = 1000
Row = dict[str, Any]


def forgetting(
    subject: Subject,
    models: Mapping[str, nn.Module],
    forget: Data,
    retain: Data,
    seconds: Mapping[str, float],
    *,
    seed: int,
    against: nn.Module | None = None,
) -> list[Row]:
    """One row a model of ``models``, compared with ``against``, else with the one named "retrained" where there is one.

    ``seconds``: what making each took. Keys: ``model``; the rates ``forget_accuracy``, ``retain_accuracy``,
    ``test_accuracy``, and where exactly one whole class is forgotten ``test_accuracy_forgotten`` and
    ``test_accuracy_others`` (else None), each with ``_low`` and ``_high`` (Wilson); ``membership_auc`` with its
    bootstrap interval; ``mia_efficacy`` (Wilson; see ``mia_efficacy``); ``seconds``; ``time_ratio`` to retraining
    (below 1 is faster); the absolute differences from the retrained model ``gap_forget``, ``gap_retain``, ``gap_test``
    (after class forgetting: on the other classes) and ``gap_membership``, and ``gap``, their mean (Fan et al., 2024,
    arXiv:2310.12508, "average gap"; the AUC stands for their attack).

    ``membership_auc``: how well a low cross-entropy tells the forgotten samples from test samples of the same classes
    (Yeom et al., 2018, arXiv:1709.01604): 0.5 is no trace; None where the test set has none of these classes. Judge it
    against the retrained model's, which differs from 0.5 by chance and, for a class, by how its samples were drawn.
    """
    rows = [_row(name, model, subject.test, forget, retain, seed) for name, model in models.items()]
    reference = next((row for row in rows if row["model"] == REFERENCE), None)
    if against is not None:
        reference = _row(REFERENCE, against, subject.test, forget, retain, seed)
    for row in rows:
        spent, whole = seconds.get(row["model"]), seconds.get(REFERENCE)
        row["seconds"] = spent
        row["time_ratio"] = spent / whole if spent is not None and whole else None
        row |= _gaps(row, reference)
    return rows


def mia_efficacy(model: nn.Module, forget: Data, retain: Data, test: Data) -> tuple[int, int]:
    """How many of ``forget`` an attack takes for samples that were never trained on, and how many there are.

    A support vector machine (RBF, C = 3, gamma "auto") on the probability of the label learns to tell retained from
    test samples, as many of each, at most 1000 (Jia et al., 2023, arXiv:2304.04934, "MIA-efficacy").
    """
    n = min(len(retain), len(test), MOST)
    inside, outside, asked = (_confidence(model, part) for part in (retain.limit(n), test.limit(n), forget))
    judge = SVC(C=3, gamma="auto").fit(np.concatenate([inside, outside]), np.repeat([1, 0], n))
    return int((judge.predict(asked) == 0).sum()), len(asked)


def _confidence(model: nn.Module, data: Data) -> np.ndarray:
    return predict(model, data.x).softmax(1).gather(1, data.y[:, None]).numpy()


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
    row |= _membership(losses, outside, seed)
    outsiders, n = mia_efficacy(model, forget, retain, test)
    return row | _interval("mia_efficacy", outsiders / n, *wilson(outsiders, n))


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


def _gaps(row: Row, reference: Row | None) -> Row:
    """Absolute differences from the reference, and their mean over those that there are."""
    test = "test_accuracy" if row["test_accuracy_others"] is None else "test_accuracy_others"
    keys = {"forget": "forget_accuracy", "retain": "retain_accuracy", "test": test, "membership": "membership_auc"}
    gaps: Row = {f"gap_{k}": None for k in keys}
    if reference is None:
        return gaps | {"gap": None}
    gaps |= {f"gap_{k}": abs(row[v] - reference[v]) for k, v in keys.items() if row[v] is not None}
    return gaps | {"gap": float(np.mean([v for v in gaps.values() if v is not None]))}
