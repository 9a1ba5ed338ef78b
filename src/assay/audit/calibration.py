"""Calibration: are confidences frequencies?"""

from __future__ import annotations

import numpy as np

from assay.audit.property import CLASSIFIERS, Context, Cost, Plot, Property, Section
from assay.calibrate import Outputs, TemperatureScaling, ece, reliability
from assay.calibrate.measures import sample_brier, sample_nll, top
from assay.calibrate.temperature import FittedTemperature
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, measured
from assay.subject import Subject
from assay.subject.adapters.base import margins

BINS = 15


def measure(subject: Subject, context: Context) -> Section:
    """Calibration of the test set's softmax confidences, and the temperature that the holdout asks for."""
    data, section = subject.test, Section(headline=["calibration.ece", "calibration.nll", "calibration.overconfidence"])
    outputs = Outputs(predict(subject.model, data.x))
    p, y, index = outputs.probabilities.numpy(), data.y.numpy(), data.index.numpy()
    values, how = top(p, y), f"softmax on {len(data)} samples of {data.name}"
    binned = f"{how}, {BINS} bins of"
    error = section.add(
        measured("calibration.ece", values, index, statistic="ece", better="lower", how=f"{binned} equal width")
    )
    section.add(
        measured(
            "calibration.adaptive_ece", values, index, statistic="adaptive_ece", better="lower",
            how=f"{binned} equal mass",
        )
    )  # fmt: skip
    section.add(measured("calibration.nll", sample_nll(p, y), index, unit="nats", better="lower", how=how, rate=False))
    section.add(measured("calibration.brier", sample_brier(p, y), index, better="lower", how=how, rate=False))
    gap = section.add(
        measured("calibration.overconfidence", values[:, 0] - values[:, 1], index, how=f"confidence - accuracy, {how}")
    )
    section.plots += _plots(p, y)
    if (meant := margins(subject.model)) is not None:
        section.notes.append(meant)
    _temperature(subject, outputs, section, error.value or 0.0)
    assert gap.value is not None
    word = "exceed" if gap.value > 0 else "fall short of"
    text = f"Confidences {word} the accuracy by {abs(gap.value):.1%} on average; ECE is {error.value:.1%}."
    section.findings.append((error.value or 0.0, text))
    return section


def _temperature(subject: Subject, outputs: Outputs, section: Section, before: float) -> None:
    """The holdout's temperature with its sandwich interval, and what it would do to the calibration error."""
    holdout = subject.holdout
    assert holdout is not None
    fitted = TemperatureScaling().fit(Outputs(predict(subject.model, holdout.x)), holdout.y)
    assert isinstance(fitted, FittedTemperature)
    t, error = fitted.temperature_, fitted.standard_error_
    low, high = (None, None) if error is None else (max(t - 1.96 * error, 0.0), t + 1.96 * error)
    section.add(
        Metric(
            "calibration.temperature", t, low, high, None if error is None else "sandwich 95%", len(holdout),
            how=f"maximum likelihood on {len(holdout)} samples of the holdout; above 1 the model is overconfident",
        )
    )  # fmt: skip
    after = ece(fitted.transform(outputs).softmax(1), subject.test.y, bins=BINS)
    section.notes.append(
        f"Temperature {t:.3g}, fitted on the holdout, moves the calibration error from {before:.4f} to {after:.4f} "
        "(assay repair --with calibrate.TemperatureScaling)."
    )


def _plots(p: np.ndarray, y: np.ndarray) -> list[Plot]:
    """The reliability diagram, and how the confidences are spread."""
    bins = reliability(p, y, bins=BINS)
    full = bins.count > 0
    names = [f"{a:.2f}-{b:.2f}" for a, b in zip(bins.edges, bins.edges[1:], strict=False)]
    line = {"x": bins.confidence[full].tolist(), "y": bins.accuracy[full].tolist()}
    counted = {"x": names, "y": bins.count.tolist()}
    title = f"Reliability ({int(full.sum())} of {BINS} bins hold samples)"
    return [
        Plot("line", title, {"accuracy": line}, "confidence", "accuracy", "diagonal"),
        Plot("bar", "Samples by confidence", {"samples": counted}, "confidence", "samples"),
    ]


def _cost(subject: Subject, context: Context) -> Cost:
    holdout = len(subject.holdout) if subject.holdout is not None else 0
    return Cost(forward=len(subject.test) + holdout)


PROPERTY = Property("calibration", "Calibration", measure, _cost, tasks=CLASSIFIERS, passes=True)
