"""Wrong labels in the test set and, by cross-validation, in the training set.

Northcutt et al., 2021, arXiv:2103.14749.
"""

from __future__ import annotations

import numpy as np

from assay.audit.property import CLASSIFIERS, MOST, Context, Cost, Plot, Property, Section, retrains
from assay.data import Data
from assay.labels import ConfidentLearning, LabelNoise, cross_probabilities, estimate_joint
from assay.runtime.inference import predict
from assay.runtime.metric import Metric, measured
from assay.runtime.random import numpy_rng
from assay.subject import Subject
from assay.subject.adapters.base import margins

RESAMPLES = 200
SHOWN = 24
FOLDS = 5


def error_rate(name: str, labels: np.ndarray, probs: np.ndarray, *, how: str, seed: int) -> Metric:
    """The estimated share of wrong labels: what the joint holds off its diagonal; percentile bootstrap from n >= 50."""
    value, low, high, interval = _off_diagonal(labels, probs), None, None, None
    if len(labels) >= 50:
        rng = numpy_rng(seed, name)
        rows = (rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES))
        draws = [_off_diagonal(labels[r], probs[r]) for r in rows]
        low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
        interval = f"bootstrap 95%, {RESAMPLES} resamples"
    return Metric(name, value, low, high, interval, len(labels), better="lower", how=how)


def _off_diagonal(labels: np.ndarray, probs: np.ndarray) -> float:
    joint = estimate_joint(labels, probs)
    return float(joint[~np.eye(len(joint), dtype=bool)].sum())  # exactly 0 of a diagonal, unlike 1 - trace


def measure(subject: Subject, context: Context) -> Section:
    """Estimated error rate of the labels, the suspects, and what they look like."""
    data, section = subject.test, Section(headline=["labels.error_rate", "labels.suspects"])
    y, probs = data.y.numpy(), predict(subject.model, data.x).double().softmax(1).numpy()
    noise = ConfidentLearning().fit(y, probs)
    how = f"confident learning, prune by noise rate, on the subject's own probabilities for {data.name}"
    rate = section.add(error_rate("labels.error_rate", y, probs, how=how, seed=context.seed))
    count = int(noise.suspects_.sum())
    section.add(Metric("labels.suspects", float(count), n=len(data), unit="samples", better="lower", how=how))
    section.add(
        measured("labels.suspects.rate", noise.suspects_.astype(float), data.index.numpy(), better="lower", how=how)
    )
    _show(section, data, noise, probs)
    if (meant := margins(subject.model)) is not None:
        section.notes.append(meant)
    section.notes.append("The subject's own errors on rare or hard samples raise the estimate: suspects need a look.")
    section.findings.append(
        (
            float(rate.value or 0.0),
            f"{count} test labels are suspect; an estimated {rate.value:.1%} of the test labels are wrong.",
        )
    )
    _training(subject, context, section)
    return section


def _show(section: Section, data: Data, noise: LabelNoise, probs: np.ndarray) -> None:
    y, ranked, names = data.y.numpy(), noise.ranked(), data.classes
    joint = np.round(noise.joint_, 6).tolist()
    axes = {"z": joint, "x": list(names), "y": list(names)}
    section.plots.append(Plot("heatmap", "Joint of given (rows) and true labels", {"": axes}, "true", "given"))
    section.tables["suspects"] = [
        {
            "index": int(data.index[i]),
            "given": names[y[i]],
            "suggested": names[noise.suggested_[i]],
            "self_confidence": round(float(probs[i, y[i]]), 6),
        }
        for i in ranked
    ]
    shown = ranked[:SHOWN]
    if len(shown) and data.x.dim() == 4 and data.shape[0] in (1, 3):
        low, high = data.bounds
        pixels = ((data.x[shown] - low) / (high - low) * 255).round().clamp(0, 255).int().permute(0, 2, 3, 1)
        images = pixels[..., 0] if data.shape[0] == 1 else pixels
        captions = [f"{names[y[i]]} -> {names[noise.suggested_[i]]}" for i in shown]
        section.plots.append(
            Plot("images", "Most suspect labels", {"": {"images": images.tolist(), "captions": captions}})
        )


def _training(subject: Subject, context: Context, section: Section) -> None:
    if context.profile == "quick":
        return
    if subject.train is None or subject.recipe is None or not retrains(subject):
        lacking = "training data" if subject.train is None else "recipe, or no weights, to train with"
        section.notes.append(f"The training labels were not examined: the subject has no {lacking}.")
        return
    train = subject.train.limit(context.limit, seed=context.seed)
    probs = cross_probabilities(subject.model, subject.recipe, train, folds=FOLDS, seed=context.seed).numpy()
    how = f"confident learning on {FOLDS}-fold cross-validated probabilities of {train.name}"
    section.add(error_rate("labels.train.error_rate", train.y.numpy(), probs, how=how, seed=context.seed))
    found = ConfidentLearning().fit(train.y.numpy(), probs).suspects_.astype(float)
    section.add(measured("labels.train.suspects.rate", found, train.index.numpy(), better="lower", how=how))


def cost(subject: Subject, context: Context) -> Cost:
    """One pass over the test set; beyond quick, a training for each fold."""
    trains = context.profile != "quick" and subject.train is not None and retrains(subject)
    return Cost(forward=len(subject.test), trainings=FOLDS * (1 - 1 / FOLDS) if trains else 0.0)


PROPERTY = Property("labels", "Label errors", measure, cost, tasks=CLASSIFIERS, most=MOST)
