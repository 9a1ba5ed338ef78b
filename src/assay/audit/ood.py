"""Out-of-distribution detection: does the model know when an input is none of its classes?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from assay.audit.property import CLASSIFIERS, MOST, Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.data.outsets import photo_patches, pixel_shuffled
from assay.detect import KNN, MSP, Energy, Mahalanobis
from assay.detect.base import Detector, FittedDetector
from assay.runtime.errors import InputError
from assay.runtime.metric import measured
from assay.subject import Access, Subject
from assay.subject.adapters.base import normalised

TPR = 0.95
WORDS = {"photos": "patches of photographs", "shuffled": "inputs in shuffled order"}


def _budget(context: Context) -> int:
    return context.limit or context.pick(1000, 5000, 20000)


def detectors(subject: Subject, section: Section, size: int) -> dict[str, Detector]:
    """By the name in the metrics; those that read features where weights and training data are at hand.

    ``size``: how many samples they are fitted on.
    """
    found: dict[str, Detector] = {"msp": MSP()}
    if normalised(subject.model):
        section.notes.append(
            "Energy left out: the model gives probabilities, and their energy is the same for all inputs."
        )
    else:
        found["energy"] = Energy()
    if subject.access < Access.WEIGHTS:
        section.notes.append(f"Mahalanobis and KNN left out: need WEIGHTS access; {subject.access.name} is granted.")
    elif subject.train is None:
        section.notes.append("Mahalanobis and KNN left out: need the training data; the subject has none.")
    else:
        found |= {"mahalanobis": Mahalanobis(), "knn": KNN(k=min(50, max(size // 20, 1)))}
    return found


def fitting(
    section: Section, chosen: Mapping[str, Detector], subject: Subject, data: Data
) -> Iterator[tuple[str, Detector, FittedDetector]]:
    """Each of ``chosen`` fitted on ``data``, one at a time; those that ``data`` does not allow are named in the notes.

    Raises InputError where none can be fitted.
    """
    errors: list[InputError] = []
    for name, detector in chosen.items():
        try:
            fitted = detector.fit(subject.model, data, subject.holdout)
        except InputError as error:
            method = type(detector).__name__
            section.notes.append(f"{method} left out: {str(error).removeprefix(f'{method}: ')}")
            errors.append(error)
        else:
            yield name, detector, fitted
    if len(errors) == len(chosen):
        raise errors[0]


def _outsets(data: Data, context: Context, section: Section) -> dict[str, Tensor]:
    """By the name in the metrics; as many samples as ``data`` has."""
    sets = {"shuffled": pixel_shuffled(data, seed=context.seed)}
    shape = data.shape
    if len(shape) == 3 and shape[0] in (1, 3) and shape[1] <= 427 and shape[2] <= 640:
        sets = {"photos": photo_patches(data, len(data), seed=context.seed), **sets}
    else:
        section.notes.append(f"Photographs left out: samples of shape {shape} are no grey or colour images.")
    return sets


def measure(subject: Subject, context: Context) -> Section:
    """AUROC and FPR at 95% TPR of each detector on each out-set; in-distribution is the test set."""
    section = Section()
    data = subject.test.limit(_budget(context), seed=context.seed)
    holdout = subject.holdout
    assert holdout is not None
    fit_data = (subject.train if subject.train is not None else holdout).limit(_budget(context) * 5, seed=context.seed)
    chosen, sets = detectors(subject, section, len(fit_data)), _outsets(data, context, section)
    table: dict[str, dict[str, float]] = {}
    for name, detector, fitted in fitting(section, chosen, subject, fit_data):
        inside, threshold = fitted.score(data.x).numpy(), fitted.threshold(1 - TPR)
        for out, x in sets.items():
            outside = fitted.score(x).numpy()
            how = f"{detector} on {len(data)} samples of {data.name} and as many {WORDS[out]}"
            area = auroc(section, f"ood.{out}.{name}", inside, outside, data.index, how)
            _fpr(section, f"ood.{out}.{name}", outside, threshold, f"{how}; threshold: {TPR:.0%} of holdout inside")
            table.setdefault(name, {})[out] = area
    _report(section, table, sets)
    return section


def auroc(section: Section, prefix: str, inside: np.ndarray, outside: np.ndarray, index: Tensor, how: str) -> float:
    """Add the AUROC of ``outside`` scores against ``inside`` ones, whose samples ``index`` names, and return it."""
    score = np.concatenate([inside, outside])
    label = np.repeat([0.0, 1.0], [len(inside), len(outside)])
    names = np.concatenate([index.numpy(), -1 - np.arange(len(outside))])
    metric = section.add(
        measured(f"{prefix}.auroc", np.stack([score, label], 1), names, statistic="auroc", better="higher", how=how)
    )
    assert metric.value is not None
    return metric.value


def _fpr(section: Section, prefix: str, outside: np.ndarray, threshold: float, how: str) -> None:
    accepted = (outside <= threshold).astype(float)
    names = -1 - np.arange(len(outside))
    section.add(measured(f"{prefix}.fpr95", accepted, names, better="lower", how=how))


def _report(section: Section, table: dict[str, dict[str, float]], sets: dict[str, Tensor]) -> None:
    series = {name: {"x": [WORDS[o] for o in row], "y": list(row.values())} for name, row in table.items()}
    section.plots.append(Plot("bar", "Telling other inputs from test samples", series, "", "AUROC", 0.5))
    section.headline = [f"ood.{out}.msp.auroc" for out in sets]
    values = {m.name: m.value for m in section.metrics}
    for out in sets:
        accepted = values[f"ood.{out}.msp.fpr95"]
        assert accepted is not None
        best = max(table, key=lambda name: table[name][out])
        others = f"; best of {len(table)} detectors: {best}, AUROC {table[best][out]:.2f}" if len(table) > 1 else ""
        section.findings.append(
            (
                accepted,
                f"{accepted:.1%} of {WORDS[out]} pass for test samples by the model's confidence (95% of held-out "
                f"samples accepted; AUROC {table['msp'][out]:.2f}){others}.",
            )
        )


def cost(subject: Subject, context: Context) -> Cost:
    """Forward passes: each detector scores its fit data, the holdout, the test samples and two out-sets."""
    assert subject.holdout is not None
    n = min(len(subject.test), _budget(context))
    plain = 2 * (3 * n + len(subject.holdout))
    if subject.train is None or subject.access < Access.WEIGHTS:
        return Cost(forward=plain)
    return Cost(forward=plain + 2 * (2 * min(len(subject.train), 5 * n) + 3 * n + len(subject.holdout)))


PROPERTY = Property("ood", "Out-of-distribution detection", measure, cost, tasks=CLASSIFIERS, most=MOST, moves="scaled")
