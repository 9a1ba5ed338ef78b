"""Robustness to someone who sees labels only: the smallest l2 perturbations that CGBA finds by asking for decisions."""

from __future__ import annotations

import numpy as np

from assay.attacks import CGBA, Untargeted
from assay.audit.property import MOST, Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.runtime.metric import measured, resampled
from assay.runtime.random import numpy_rng
from assay.subject import Access, Subject
from assay.subject.access import Oracle

SIZES = (0.25, 0.5, 1.0, 2.0)  # of the data's range, as for the gradient attacks in l2
HEADLINE = 1.0
RESAMPLES = 400
NAME = "robustness.decision"


def _budget(context: Context) -> tuple[int, int]:
    """Samples, and queries for each."""
    n, queries = context.pick((16, 300), (32, 1000), (64, 2000))
    return (min(n, context.limit) if context.limit else n), queries


def _data(subject: Subject, context: Context) -> Data:
    return subject.test.limit(_budget(context)[0], seed=context.seed)


def measure(subject: Subject, context: Context) -> Section:
    """Accuracy against the size of the perturbation, and the median distance to a wrong decision."""
    data, (_, queries) = _data(subject, context), _budget(context)
    unit = data.bounds[1] - data.bounds[0]
    section = Section(headline=[f"{NAME}.accuracy@{HEADLINE:g}", f"{NAME}.distance"])
    # The paper's quarter of the frequencies is for photographs: on a few pixels it would leave hardly a direction.
    large = len(data.shape) == 3 and min(data.shape[1:]) >= 28
    attack = CGBA(bounds=data.bounds, budget=queries, sigma=None, dim_reduction=4.0 if large else 1.0)
    oracle = Oracle(subject.model, access=Access.DECISION)
    found = attack.run(oracle, data.x, Untargeted(data.y), seed=context.seed, index=data.index)
    distance = (found.distance / unit).numpy().astype(float)
    how = f"CGBA, {queries} decisions a sample, l2, {len(data)} samples of {data.name}"
    rates = []
    for eps in SIZES:
        right = (distance > eps).astype(float)
        rates.append(float(right.mean()))
        name = f"{NAME}.accuracy@{eps:g}"
        section.add(measured(name, right, data.index.numpy(), better="higher", how=f"{how}; eps {eps:g} of the range"))
    rng = numpy_rng(context.seed, NAME)
    again = np.median(distance[rng.integers(len(distance), size=(RESAMPLES, len(distance)))], axis=1)
    median = float(np.median(distance))
    if np.isfinite(again).all():
        section.add(
            resampled(
                f"{NAME}.distance",
                median,
                again,
                data.hash,
                better="higher",
                how=f"median, in units of the range; {how}",
                n=len(data),
                least=0.0,
                seed=context.seed,
            )
        )
    series = {"CGBA (decisions only)": {"x": list(SIZES), "y": rates}}
    section.plots.append(
        Plot("line", "Accuracy where only decisions are seen (l2)", series, "eps (of the range)", "accuracy")
    )
    if np.isfinite(median):
        text = (
            f"With {queries} questions for a label, half of the samples are misread at an l2 distance of {median:.2f}"
        )
        section.findings.append((float(np.clip(1 - median / HEADLINE, 0, 1)), f"{text} of the range or less."))
    return section


def _cost(subject: Subject, context: Context) -> Cost:
    n, queries = _budget(context)
    return Cost(forward=min(n, len(subject.test)) * queries)


PROPERTY = Property(
    NAME,
    "Robustness to questions (decisions only)",
    measure,
    _cost,
    profiles=("standard", "deep"),
    needs=Access.DECISION,
    most=MOST,
    moves="scaled",
    free=True,
)
