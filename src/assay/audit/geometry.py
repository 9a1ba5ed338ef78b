"""Geometry: how far the last layer has collapsed to a simplex (NC1 to NC4)."""

from __future__ import annotations

import numpy as np
import torch

from assay.audit.property import CLASSIFIERS, MOST, Context, Cost, Plot, Property, Section
from assay.data import Data
from assay.dynamics import head_inputs, neural_collapse
from assay.runtime.errors import InputError
from assay.runtime.metric import measured, resampled
from assay.runtime.random import numpy_rng
from assay.subject import Access, Subject

NAMES = {"geometry.nc1": "nc1", "geometry.nc2.norms": "norms", "geometry.nc2.angles": "angles", "geometry.nc3": "nc3"}


def _data(subject: Subject, context: Context) -> Data:
    whole = subject.train if subject.train is not None else subject.test
    data = whole.limit(context.pick(2000, 10000, None), seed=context.seed)
    return data.limit(context.limit, seed=context.seed)


def measure(subject: Subject, context: Context) -> Section:
    """NC1 to NC4 of what the head is fed; skipped where there is no linear head or a class has no sample."""
    data = _data(subject, context)
    section = Section(headline=["geometry.nc1", "geometry.nc4"])
    try:
        fed, head = head_inputs(subject.model, data.x)
        weight, bias = head.weight, head.bias
        found = neural_collapse(fed, data.y, weight, bias)
    except InputError as error:
        return Section(skipped=str(error))
    if subject.train is None:
        section.notes.append("The subject has no training data: measured on the test set, where collapse is weaker.")
    draws = context.pick(50, 100, 200)
    again = [neural_collapse(fed[rows], data.y[rows], weight, bias) for rows in _resamples(data.y, draws, context.seed)]
    how = f"inputs of the last linear layer, {len(data)} samples of {data.name}; 0 is full collapse"
    for name, field in NAMES.items():
        spread = np.array([getattr(a, field) for a in again])
        text = f"{how}; resampled within classes"
        value, source = float(getattr(found, field)), data.hash
        section.add(resampled(name, value, spread, source, how=text, n=len(data), least=0.0, seed=context.seed))
    section.add(
        measured(
            "geometry.nc4",
            found.disagree.double().numpy(),
            data.index.numpy(),
            better="lower",
            how=f"{how}; head and nearest class mean disagree",
            seed=context.seed,
        )
    )
    values = [m.value for m in section.metrics]
    bars = {"distance from collapse": {"x": ["NC1", "NC2 norms", "NC2 angles", "NC3", "NC4"], "y": values}}
    section.plots.append(Plot("bar", "Distance from neural collapse", bars, "", "value"))
    section.findings.append(
        (
            min(found.nc4, 1.0),
            f"The head disagrees with the nearest class mean on {found.nc4:.1%} of {data.name}.",
        )
    )
    return section


def _resamples(y: torch.Tensor, draws: int, seed: int) -> list[torch.Tensor]:
    """Rows drawn again within each class, so that no class is lost."""
    rng, classes = numpy_rng(seed, "geometry"), [np.flatnonzero(y.numpy() == c) for c in y.unique().tolist()]
    return [torch.from_numpy(np.concatenate([rng.choice(c, len(c)) for c in classes])) for _ in range(draws)]


def _cost(subject: Subject, context: Context) -> Cost:
    return Cost(forward=len(_data(subject, context)))


PROPERTY = Property(
    "geometry", "Geometry of the last layer", measure, _cost, needs=Access.WEIGHTS, tasks=CLASSIFIERS, most=MOST
)
