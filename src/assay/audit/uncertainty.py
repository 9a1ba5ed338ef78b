"""Uncertainty: do prediction sets cover, how large are they, and for whom do they fail?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from assay.audit.property import CLASSIFIERS, Context, Cost, Plot, Property, Section
from assay.calibrate import Outputs
from assay.certify import APS, LAC, FittedSets, SetPredictor
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.subject import Subject

ALPHA = 0.1
BLOCK = 10_000  # samples whose sets are held at once
METHODS: dict[str, SetPredictor] = {"lac": LAC(alpha=ALPHA), "aps": APS(alpha=ALPHA)}


def measure(subject: Subject, context: Context) -> Section:
    """Split conformal sets at 90%, calibrated on the holdout, evaluated on the test set."""
    data, holdout = subject.test, subject.holdout
    assert holdout is not None
    section = Section(headline=["uncertainty.lac.coverage", "uncertainty.lac.size"])
    fitting = Outputs(predict(subject.model, holdout.x), index=holdout.index)
    outputs = Outputs(predict(subject.model, data.x), index=data.index)
    index, y = data.index.numpy(), data.y.numpy()
    sizes = {}
    for name, method in METHODS.items():
        fitted = method.fit(fitting, holdout.y, seed=context.seed)
        covered, size = _scored(fitted, outputs, data.y)
        sizes[name] = size
        how = f"{type(method).__name__} at alpha {ALPHA:g}, calibrated on {len(holdout)} samples of the holdout"
        got = section.add(measured(f"uncertainty.{name}.coverage", covered, index, how=how))
        section.add(
            measured(f"uncertainty.{name}.size", size, index, unit="classes", better="lower", how=how, rate=False)
        )
        worst = section.add(
            measured(
                f"uncertainty.{name}.worst_class_coverage", np.stack([covered, y], 1), index,
                statistic="worst_class", better="higher", how=how,
            )
        )  # fmt: skip
        _find(section, name.upper(), got.value or 0.0, worst.value or 0.0)
        if not np.isfinite(fitted.threshold_):
            section.notes.append(
                f"{name.upper()}: {len(holdout)} holdout samples are too few for alpha {ALPHA:g}: all classes in."
            )
    section.plots.append(_histogram(sizes, len(data.classes)))
    return section


def _scored(fitted: FittedSets, outputs: Outputs, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whether each set covers its label, and its size, a block of samples at a time."""
    assert outputs.index is not None
    covered, size = [], []
    for k in range(0, len(y), BLOCK):
        rows = slice(k, k + BLOCK)
        sets = fitted.sets(Outputs(outputs.logits[rows], index=outputs.index[rows]))
        covered.append(sets.gather(1, y[rows, None])[:, 0])
        size.append(sets.sum(1))
    return torch.cat(covered).numpy().astype(float), torch.cat(size).numpy().astype(float)


def _find(section: Section, name: str, coverage: float, worst: float) -> None:
    promised = 1 - ALPHA
    section.findings.append(
        (
            max(promised - coverage, 0.0) + 0.5 * max(promised - worst, 0.0),
            f"{name} sets promise {promised:.0%}, cover {coverage:.1%} on average and {worst:.1%} in the worst class.",
        )
    )


def _histogram(sizes: dict[str, np.ndarray], classes: int) -> Plot:
    top = min(classes, int(max(s.max() for s in sizes.values())))
    names = [str(k) for k in range(top + 1)]
    series = {k: {"x": names, "y": np.bincount(s.astype(int), minlength=top + 1).tolist()} for k, s in sizes.items()}
    return Plot("bar", "Size of the prediction sets", series, "classes in the set", "samples")


def _cost(subject: Subject, context: Context) -> Cost:
    holdout = len(subject.holdout) if subject.holdout is not None else 0
    return Cost(forward=len(subject.test) + holdout)


PROPERTY = Property("uncertainty", "Prediction sets", measure, _cost, tasks=CLASSIFIERS, passes=True)
