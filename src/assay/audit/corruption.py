"""Corruption: accuracy under common corruptions, by family and severity."""

from __future__ import annotations

import numpy as np

from assay.audit.property import Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption
from assay.runtime.inference import predict
from assay.runtime.metric import measured
from assay.runtime.random import Draws
from assay.subject import Access, Subject

FAMILIES = ("noise", "blur", "photometric", "digital", "geometric")
QUICK = ("gaussian-noise", "impulse-noise", "motion-blur", "contrast", "pixelate", "rotate", "translate")


def _plan(context: Context) -> tuple[list[Corruption], tuple[int, ...]]:
    names = context.pick(QUICK, tuple(CORRUPTIONS), tuple(CORRUPTIONS))
    return [CORRUPTIONS[n] for n in names], context.pick((1, 3, 5), SEVERITIES, SEVERITIES)


def _data(subject: Subject, context: Context) -> Data:
    data = subject.test.limit(context.pick(200, 1000, None), seed=context.seed)
    return data.limit(context.limit, seed=context.seed)


def measure(subject: Subject, context: Context) -> Section:
    """Accuracy of corrupted test images; a sample's value is its mean over severities (and corruptions of a family)."""
    if len(subject.test.shape) != 3 or min(subject.test.shape[1:]) < 4:
        return Section(skipped=f"corrupts images (c, h, w) of at least 4x4; samples have shape {subject.test.shape}")
    data, section = _data(subject, context), Section(headline=["corruption.accuracy"])
    chosen, severities = _plan(context)
    y, index = data.y.numpy(), data.index.numpy()
    clean = float((predict(subject.model, data.x).argmax(1).numpy() == y).mean())
    correct = {c.name: _correct(subject, data, c, severities, context.seed) for c in chosen}
    family = {f: np.stack([correct[c.name] for c in chosen if c.family == f]).mean(0) for f in FAMILIES}
    how = f"severities {', '.join(map(str, severities))} on {len(data)} samples of {data.name}: "
    every = np.mean([table.mean(0) for table in family.values()], axis=0)
    section.add(
        measured("corruption.accuracy", every, index, better="higher", seed=context.seed, how=how + "mean of families")
    )
    for name, table in family.items():
        members = ", ".join(c.name for c in chosen if c.family == name)
        section.add(
            measured(
                f"corruption.{name}.accuracy",
                table.mean(0),
                index,
                better="higher",
                seed=context.seed,
                how=how + members,
            )
        )
    levels = [0, *severities]
    lines = {f: {"x": levels, "y": [clean, *table.mean(1).tolist()]} for f, table in family.items()}
    section.plots.append(Plot("line", "Accuracy by severity", lines, "severity", "accuracy"))
    section.tables["corruptions"] = [
        {"corruption": c.name, "family": c.family, "accuracy": float(correct[c.name].mean())} for c in chosen
    ]
    section.findings.append(_finding(clean, family))
    return section


def _correct(
    subject: Subject, data: Data, corruption: Corruption, severities: tuple[int, ...], seed: int
) -> np.ndarray:
    """Whether each sample is classified rightly at each severity, (severities, n)."""
    rows = []
    for severity in severities:
        draws = Draws(seed, f"corruption/{corruption.name}", data.index)
        x = corruption.apply(data.x, severity, draws, data.bounds)
        rows.append((predict(subject.model, x).argmax(1) == data.y).numpy())
    return np.stack(rows).astype(float)


def _finding(clean: float, family: dict[str, np.ndarray]) -> tuple[float, str]:
    means = {f: float(table.mean()) for f, table in family.items()}
    worst = min(means, key=lambda f: means[f])
    loss = max(clean - means[worst], 0.0)
    last = float(family[worst][-1].mean())
    return loss, (
        f"Corruption by {worst} lowers accuracy from {clean:.1%} to {means[worst]:.1%} on average, "
        f"and to {last:.1%} at the highest severity."
    )


def _cost(subject: Subject, context: Context) -> Cost:
    chosen, severities = _plan(context)
    return Cost(forward=len(_data(subject, context)) * (1 + len(chosen) * len(severities)))


PROPERTY = Property("corruption", "Robustness to common corruptions", measure, _cost, needs=Access.DECISION)
