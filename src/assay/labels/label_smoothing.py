"""Label smoothing against label noise."""

from __future__ import annotations

from dataclasses import dataclass

from assay.runtime.errors import InputError
from assay.training import Supervised


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Supervised):
    """Cross-entropy of labels mixed with the uniform one, as a defence against label noise (Lukasik et al., 2020,
    arXiv:2003.02819, section 2.2).

    ``label_smoothing`` in [0, 1) is the uniform part. InputError for another number.
    """

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"LabelSmoothing: label_smoothing={self.label_smoothing}; expected a share in [0, 1)")
