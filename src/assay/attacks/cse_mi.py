"""MI-CSE: the inner pass of the common weakness attack alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assay.attacks.cwa import CWA


@dataclass(frozen=True, kw_only=True)
class CSE_MI(CWA):
    """CWA without its reverse step: the cosine similarity encourager (Chen et al., 2023, arXiv:2303.09105).

    One gradient of each surrogate a step. The inner step is 50 sqrt(d / 150528), the official 50 at 224 x 224.
    Shapes, ranges, errors and options: see CWA.
    """

    reach: ClassVar[float] = 50.0

    reverse_step: float = 0.0
