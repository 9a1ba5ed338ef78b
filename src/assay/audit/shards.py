"""Properties whose samples do not depend on each other: measured in parts, on any worker, to one and the same result.

The parts follow from the number of samples alone, never from the number of workers, and all randomness is keyed by a
sample's index or by the part; so one process, a pool and a cluster compute the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from assay.audit.property import Context, Section
from assay.data import Data
from assay.runtime.errors import AccessError, BudgetError, InputError
from assay.runtime.random import seeded
from assay.runtime.throughput import products
from assay.subject import Subject

MOST = 64  # parts of one property
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shards:
    """How a property is cut.

    ``rows(subject, context)`` are the samples that it measures, None where it cannot be cut; ``part(model, data,
    context)`` gives arrays with one row for each sample of a part; ``whole(subject, data, arrays, context)`` makes the
    section from the rows of all parts. A part has at least ``least`` samples.
    """

    rows: Callable[[Subject, Context], Data | None]
    part: Callable[[nn.Module, Data, Context], dict[str, np.ndarray]]
    whole: Callable[[Subject, Data, Arrays, Context], Section]
    least: int = 64

    def cut(self, n: int) -> list[slice]:
        """The rows of each part."""
        size = max(self.least, -(-n // MOST))
        return [slice(k, min(k + size, n)) for k in range(0, n, size)]

    def measure(self, name: str, subject: Subject, context: Context) -> Section:
        """All parts, here, one after the other."""
        context = replace(context, access=subject.access)
        data = self.rows(subject, context)
        assert data is not None
        cuts = self.cut(len(data))
        parts = [self.run(name, subject.model, data[rows], context, rows.start) for rows in cuts]
        return self.join(subject, data, parts, context)

    def run(self, name: str, model: nn.Module, data: Data, context: Context, first: int) -> dict[str, np.ndarray]:
        """The arrays of the part that begins at row ``first``, with the time that it took."""
        start = time.monotonic()
        try:
            with seeded(context.seed, name, first), products(model):
                arrays = self.part(model, data, context)
        except (AccessError, BudgetError, InputError) as error:
            arrays = {"skipped": np.array(str(error))}
        return {**arrays, "seconds": np.array(time.monotonic() - start)}

    def join(self, subject: Subject, data: Data, parts: Sequence[Arrays], context: Context) -> Section:
        """The section of all ``parts``, in the order of their rows."""
        refused = next((str(p["skipped"]) for p in parts if "skipped" in p), None)
        if refused is None:
            arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0] if k != "seconds"}
            section = self.whole(subject, data, arrays, context)
        else:
            section = Section(skipped=refused)
        section.seconds = round(sum(float(p["seconds"]) for p in parts), 3)
        return section
