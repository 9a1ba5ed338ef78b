"""The contract of methods that make data useless to train on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from assay.attacks import L2, Linf
from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import unknown


@dataclass(frozen=True)
class Protected:
    """``data`` is what may be published: same labels and indices, displaced inputs."""

    data: Data


@dataclass(frozen=True, kw_only=True)
class Protector:
    """``fit(data, *, seed) -> Protected``: inputs moved by at most ``eps`` in ``norm``, inside the data's bounds.

    Labels are those that the owner publishes. A protector protects against training on its output, not against other
    copies of the samples. Raises InputError for eps < 0, an unknown norm, and data that cannot be used.
    """

    kind: ClassVar[str] = "function"

    eps: float = 8 / 255
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise unknown(f"norm of {type(self).__name__}", str(self.norm), ("linf", "l2"))
        self.ball()

    def ball(self) -> Linf | L2:
        """What a sample may move in."""
        return Linf(self.eps) if self.norm == "linf" else L2(self.eps)

    def check(self, data: Data) -> None:
        """The checks that all protectors make."""
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)

    def fit(self, data: Data, *, seed: int) -> Protected:
        """The protected data."""
        raise TypeError(f"{type(self).__name__} does not protect")
