"""DPatch: a patch that makes a detector's own training loss large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.patch import Detector, PatchAttack, Target


@dataclass(frozen=True, kw_only=True)
class DPatch(PatchAttack):
    """The sum of the detector's training losses at the true boxes is made large (Liu et al., 2018, arXiv:1806.02299,
    untargeted). Here the patch lies on the objects, as Hingun et al. (2022, arXiv:2212.05680) use it, not in a corner.

    Loop, shapes and errors: see PatchAttack.
    """

    contract: ClassVar[bool] = False

    def objective(self, detector: Detector, images: Tensor, targets: list[Target]) -> Float[Tensor, ""]:
        return -torch.stack(list(detector.losses(images, targets).values())).sum()
