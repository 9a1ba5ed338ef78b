"""The Nesterov iterative fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from assay.attacks.engine import Climb
from assay.attacks.mifgsm import MIFGSM


@dataclass(frozen=True, kw_only=True)
class NIFGSM(MIFGSM):
    """MIFGSM with the gradient of a point ahead, z + length momentum g (Lin et al., 2020, arXiv:1908.06281, eq. 6).

    Shapes, ranges and errors: see Attack; options: see MIFGSM.
    """

    views: ClassVar[bool] = True

    def view(self, run: Climb) -> Float[Tensor, "n ..."]:
        return run.z + self.length(run.step) * self.momentum * run.memory["g"] if run.step else run.z
