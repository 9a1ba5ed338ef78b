"""Snapshot ensembles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from assay.attacks.surrogates.cyclical_sgld import CyclicalSGLD


@dataclass(frozen=True, kw_only=True)
class SnapshotSurrogate(CyclicalSGLD):
    """CyclicalSGLD without noise: networks from the ends of the cycles (Huang et al., 2017, arXiv:1704.00109).

    The baseline "SSE" of Gubri et al. (2022, arXiv:2011.05074). Options and errors: CyclicalSGLD; ``temperature`` is 0.
    """

    temperature: float | Literal["code"] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature != 0:
            self.refuse("temperature", repr(self.temperature), "0: a snapshot has no noise")
