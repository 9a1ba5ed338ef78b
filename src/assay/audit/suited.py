"""What a property is given: tables in units of their columns' ranges, and no more samples than it can take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.audit.property import Context, Property
from assay.data import Data
from assay.data.tabular import TabularData
from assay.subject import Subject

SPLITS = ("test", "holdout", "train")


class InUnits(nn.Module):
    """A model of a table, on columns in units of their ranges: 0 is the least value of a column and 1 the greatest."""

    low: Tensor
    width: Tensor

    def __init__(self, model: nn.Module, low: Float[Tensor, " d"], width: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("low", low)
        self.register_buffer("width", width)

    def forward(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        logits: Tensor = self.model(self.low + self.width * u)
        return logits


def suited(p: Property, subject: Subject, context: Context) -> tuple[Subject, list[str]]:
    """The subject as ``p`` takes it, and what the reader has to know of that."""
    notes: list[str] = []
    if p.most is not None:
        subject, notes = _fewer(subject, p.most, context)
    if p.moves == "scaled" and isinstance(subject.test, TabularData):
        subject = _in_units(subject, subject.test)
        notes.append("Columns are in units of their ranges (least value 0, greatest 1).")
    return subject, notes


def divisible(p: Property, subject: Subject, context: Context) -> tuple[Subject, list[str], Data | None]:
    """``suited``, and the rows that are cut into parts: None where the property is measured in one piece.

    That is where it cannot be cut (the subject is then as it was), or where it takes another model than the subject's
    own, which workers are not given.
    """
    if p.shards is None:
        return subject, [], None
    given, notes = suited(p, subject, context)
    return given, notes, p.shards.rows(given, context) if given.model is subject.model else None


def _fewer(subject: Subject, most: int, context: Context) -> tuple[Subject, list[str]]:
    splits = {s: d for s in SPLITS if (d := getattr(subject, s)) is not None and len(d) > most}
    if not splits:
        return subject, []
    sizes = ", ".join(f"{len(d):,} of {s}" for s, d in splits.items())
    note = f"Measured on {most:,} random samples of a split that holds more ({sizes}); --limit N takes fewer."
    fewer: dict[str, Any] = {s: d.limit(most, seed=context.seed) for s, d in splits.items()}
    return replace(subject, **fewer), [note]


def _in_units(subject: Subject, test: TabularData) -> Subject:
    tables = {s: d for s in SPLITS if (d := getattr(subject, s)) is not None}
    spans = [torch.tensor(d.ranges) for d in tables.values() if isinstance(d, TabularData)]
    low = torch.stack([s[:, 0] for s in spans]).amin(0)
    width = torch.stack([s[:, 1] for s in spans]).amax(0) - low
    width = torch.where(width > 0, width, torch.ones_like(width))
    device = next((t.device for t in (*subject.model.parameters(), *subject.model.buffers())), None)
    model = InUnits(subject.model, low.to(device), width.to(device)).eval()

    def scaled(d: Data) -> Data:
        u = ((d.x - low) / width).clamp(0, 1)
        return Data(u, d.y, d.classes, (0.0, 1.0), d.name, d.index, d.fields)

    parts: dict[str, Any] = {s: scaled(d) for s, d in tables.items()}
    return replace(subject, model=model, **parts)
