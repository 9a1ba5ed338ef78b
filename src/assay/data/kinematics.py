"""Articulated skeletons: a tree of joints with bones in metres, and its forward kinematics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError


def rotation(vector: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3 3"]:
    """The rotation about ``vector`` by its length in radians (Rodrigues' formula); the identity for a zero vector."""
    angle = vector.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    x, y, z = (vector / angle).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    angle = angle[..., None]
    return torch.eye(3).to(vector) + angle.sin() * cross + (1 - angle.cos()) * cross @ cross


def minimal_rotation(start: Float[Tensor, "*s 3"], end: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3 3"]:
    """The rotation by the smallest angle that turns the direction of ``start`` into that of ``end``.

    The identity where either is zero; half a turn about an arbitrary perpendicular where they are opposite.
    """
    a, b = torch.broadcast_tensors(start, end)
    axis = torch.linalg.cross(a, b)
    angle = torch.atan2(axis.norm(dim=-1), (a * b).sum(-1))
    aside = torch.linalg.cross(a, torch.eye(3).to(a)[a.abs().argmin(-1)])
    opposite = (axis.norm(dim=-1) <= 1e-9 * a.norm(dim=-1) * b.norm(dim=-1)) & (angle > math.pi / 2)
    axis = torch.where(opposite[..., None], aside, axis)
    return rotation(axis / axis.norm(dim=-1, keepdim=True).clamp_min(1e-30) * angle[..., None])


@dataclass(frozen=True)
class Skeleton:
    """A tree of joints: ``parents`` precede their children, -1 is the root's; ``offsets`` are bones at rest in metres.

    The frame at rest: x to the person's left, y up, z forward. Raises InputError where the tree is none.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        n = len(self.names)
        if not n or len(self.parents) != n or len(self.offsets) != n:
            sizes = (n, len(self.parents), len(self.offsets))
            raise InputError(f"skeleton: {sizes} names, parents and offsets; expected one of each a joint")
        if self.parents[0] != -1 or any(not 0 <= p < k for k, p in enumerate(self.parents) if k):
            raise InputError(f"skeleton: parents are {self.parents}; expected -1 first, then joints listed before")

    def __len__(self) -> int:
        return len(self.names)

    def forward(
        self,
        turns: Float[Tensor, "*s joints 3 3"],
        root: Float[Tensor, "*s 3"],
        scale: Float[Tensor, "*s"] | float = 1.0,
    ) -> Float[Tensor, "*s joints 3"]:
        """Positions of all joints: each ``turns`` its subtree against its parent, the root stands at ``root``.

        Position of joint j: that of its parent p plus R_p scale offset_j, with R_j = R_p turns_j.
        """
        if turns.shape[-3:] != (len(self), 3, 3):
            expected = (len(self), 3, 3)
            raise InputError(f"kinematics: turns have shape {tuple(turns.shape)}; expected (..., {expected})")
        bones = torch.tensor(self.offsets).to(turns) * torch.as_tensor(scale).to(turns)[..., None, None]
        frames, places = [turns[..., 0, :, :]], [root]
        for joint, parent in enumerate(self.parents[1:], 1):
            bone = bones[..., joint, :].expand(root.shape)
            places.append(places[parent] + (frames[parent] @ bone[..., None])[..., 0])
            frames.append(frames[parent] @ turns[..., joint, :, :])
        return torch.stack(places, -2)


def bone_lengths(
    x: Float[Tensor, "n 3 t joints persons"], parents: tuple[int, ...]
) -> Float[Tensor, "n t bones persons"]:
    """The distance of every joint but the root from its parent, in the units of ``x``."""
    if x.dim() != 5 or x.shape[1] != 3 or x.shape[3] != len(parents):
        expected = f"(n, 3, t, {len(parents)}, persons)"
        raise InputError(f"bone lengths: motions of shape {tuple(x.shape)}; expected {expected}")
    child = [k for k, p in enumerate(parents) if p >= 0]
    return (x[:, :, :, child] - x[:, :, :, [parents[k] for k in child]]).norm(dim=1)


Joint = tuple[str, str, tuple[float, float, float]]


def _limbs(side: str, sign: float) -> tuple[Joint, ...]:
    return (
        (f"{side} shoulder", "neck", (0.19 * sign, -0.05, 0.0)),
        (f"{side} elbow", f"{side} shoulder", (0.0, -0.29, 0.0)),
        (f"{side} wrist", f"{side} elbow", (0.0, -0.25, 0.0)),
        (f"{side} hip", "pelvis", (0.10 * sign, -0.05, 0.0)),
        (f"{side} knee", f"{side} hip", (0.0, -0.43, 0.0)),
        (f"{side} ankle", f"{side} knee", (0.0, -0.42, 0.0)),
    )


def _human() -> Skeleton:
    trunk: tuple[Joint, ...] = (
        ("pelvis", "", (0.0, 0.0, 0.0)),
        ("neck", "pelvis", (0.0, 0.50, 0.0)),
        ("head", "neck", (0.0, 0.20, 0.0)),
    )
    joints = trunk + _limbs("left", 1.0) + _limbs("right", -1.0)
    names = tuple(name for name, _, _ in joints)
    parents = tuple(names.index(p) if p else -1 for _, p, _ in joints)
    return Skeleton(names, parents, tuple(offset for _, _, offset in joints))


HUMAN = _human()
"""An adult of 1.65 m to the crown, arms hanging: 15 joints, segments of the length that anthropometric tables give."""
