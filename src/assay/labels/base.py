"""The contract of repairs that act on a subject's training data."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import nn

from assay.subject import Subject


@runtime_checkable
class Repair(Protocol):
    """``repair`` gives a new model and leaves the subject as it is; ``control`` the same work without the ingredient.

    Both raise AccessError without training data and InputError without a recipe.
    """

    kind: ClassVar[str]

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The repaired model."""

    def control(self, subject: Subject, *, seed: int) -> nn.Module:
        """What the repair is compared with."""
