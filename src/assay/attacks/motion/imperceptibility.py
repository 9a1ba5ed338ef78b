"""How far a perturbed motion shows: its acceleration, its jerk, its bones, and its distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.kinematics import bone_lengths
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class Imperceptibility:
    """Means over all clips, in the units of the data (metres and frames).

    acceleration, jerk: the mean length of the difference of second and of third differences over time, of a joint;
    bone: the mean change of a bone's length relative to it; l2: the mean Euclidean distance of a clip.
    """

    acceleration: float
    jerk: float
    bone: float
    l2: float


def imperceptibility(
    x: Float[Tensor, "n 3 t joints persons"], x_adv: Float[Tensor, "n 3 t joints persons"], parents: tuple[int, ...]
) -> Imperceptibility:
    """What Lu et al. (2023, arXiv:2308.05681) report of ``x_adv`` beside ``x``; ``parents`` is the tree of joints.

    The derivatives are linear, so the difference of accelerations is the acceleration of the difference. InputError
    unless both are motions of at least four frames of that tree. Absent persons count with no difference.
    """
    if x.shape != x_adv.shape or x.dim() != 5 or x.shape[2] < 4:
        shapes = f"{tuple(x.shape)} and {tuple(x_adv.shape)}"
        raise InputError(f"imperceptibility: motions of shape {shapes}; expected the same, of at least 4 frames")
    moved = x_adv.double() - x.double()
    size = {order: torch.diff(moved, order, dim=2).norm(dim=1).mean() for order in (2, 3)}
    before, after = bone_lengths(x.double(), parents), bone_lengths(x_adv.double(), parents)
    change = ((after - before).abs() / before.clamp_min(1e-12))[before > 0]
    bone = float(change.mean()) if len(change) else 0.0
    return Imperceptibility(float(size[2]), float(size[3]), bone, float(moved.flatten(1).norm(dim=1).mean()))
