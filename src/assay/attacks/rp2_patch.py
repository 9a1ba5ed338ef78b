"""RP2: a patch that makes a detector lose the objects it is on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.attacks.patch import Detector, PatchAttack, Target, matched
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RP2Patch(PatchAttack):
    """Robust physical perturbations (Eykholt et al., 2018, arXiv:1707.08945), as Hingun et al. (2022, arXiv:2212.05680)
    run them against detectors.

    The mean cross-entropy of the objects' own classes, over the proposals that overlap an object by ``iou`` or more and
    give its class at least ``min_conf``, is made large, averaged over images; ``obj_const`` adds that of objectness. An
    image without such a proposal adds nothing. Loop, shapes and errors: see PatchAttack.
    """

    contract: ClassVar[bool] = False

    iou: float = 0.1
    min_conf: float = 0.1
    obj_const: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.iou <= 1 and 0 <= self.min_conf < 1 and self.obj_const >= 0):
            given = f"iou={self.iou}, min_conf={self.min_conf}, obj_const={self.obj_const}"
            raise InputError(f"RP2Patch: {given}; expected iou in (0, 1], min_conf in [0, 1), obj_const >= 0")

    def objective(self, detector: Detector, images: Tensor, targets: list[Target]) -> Float[Tensor, ""]:
        total = images.sum() * 0
        for proposals, target in zip(detector.proposals(images), targets, strict=True):
            logits, labels, objectness = matched(proposals, target, self.iou, self.min_conf)
            if not len(labels):
                continue
            total = total + F.cross_entropy(logits, labels)
            if self.obj_const and objectness is not None:
                present = torch.ones_like(objectness)
                total = total + self.obj_const * F.binary_cross_entropy_with_logits(objectness, present)
        return -total / len(targets)
