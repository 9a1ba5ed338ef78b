"""Accuracy: top-1, balanced, worst class, per class."""

from __future__ import annotations

import numpy as np

from assay.audit.property import CLASSIFIERS, Context, Cost, Plot, Property, Section
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.subject import Access, Subject


def measure(subject: Subject, context: Context) -> Section:
    """Accuracy on the test set."""
    data, section = subject.test, Section(headline=["accuracy.top1", "accuracy.worst_class"])
    y, index = data.y.numpy(), data.index.numpy()
    predicted = predict(subject.model, data.x).argmax(1).numpy()
    correct = (predicted == y).astype(float)
    pairs = np.stack([correct, y], 1)
    source = "decisions" if subject.access < Access.SCORE else "arg max of the scores"
    how = f"{source} on {len(data)} samples of {data.name}"
    top = section.add(measured("accuracy.top1", correct, index, better="higher", how=how))
    section.add(measured("accuracy.balanced", pairs, index, statistic="balanced", better="higher", how=how))
    worst = section.add(
        measured("accuracy.worst_class", pairs, index, statistic="worst_class", better="higher", how=how)
    )
    present = np.unique(y)
    for c in present:
        mask = y == c
        section.add(measured(f"accuracy.class.{data.classes[c]}", correct[mask], index[mask], better="higher", how=how))
    rates = [float(correct[y == c].mean()) for c in present]
    names = [data.classes[c] for c in present]
    section.plots.append(Plot("bar", "Accuracy by class", {"accuracy": {"x": names, "y": rates}}, "class", "accuracy"))
    confusion = np.zeros((len(data.classes),) * 2, int)
    np.add.at(confusion, (y, predicted), 1)
    section.plots.append(
        Plot(
            "heatmap",
            "Confusion (rows: true)",
            {"": {"z": confusion.tolist(), "x": list(data.classes), "y": list(data.classes)}},
        )
    )
    assert top.value is not None
    assert worst.value is not None
    gap = top.value - worst.value
    section.findings.append((1 - top.value, f"{1 - top.value:.1%} of the test samples are classified wrongly."))
    name = names[int(np.argmin(rates))]
    text = f"Class {name!r} is recognised {worst.value:.1%} of the time, {gap:.1%} below the average."
    section.findings.append((gap, text))
    return section


PROPERTY = Property(
    "accuracy",
    "Accuracy",
    measure,
    lambda s, c: Cost(forward=len(s.test)),
    needs=Access.DECISION,
    tasks=CLASSIFIERS,
)
