"""Synthetic human motions: joint programs on a kinematic tree, with a random style for every clip."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.data.data import Data
from assay.data.kinematics import HUMAN, rotation
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

Term = tuple[float, float, int, float]
"""Offset and amplitude in radians, harmonic of the clip's tempo, phase in turns: offset + a sin(2 pi (h u + phase))."""

# By class: joint and axis (x flexes: negative lifts a limb forward, z spreads, y twists) and how the angle runs.
PROGRAMS: Mapping[str, Mapping[str, Term]] = {
    "walk": {
        "left hip x": (0.0, 0.45, 1, 0.0),
        "right hip x": (0.0, 0.45, 1, 0.5),
        "left knee x": (0.35, 0.35, 1, 0.25),
        "right knee x": (0.35, 0.35, 1, 0.75),
        "left shoulder x": (0.0, 0.40, 1, 0.5),
        "right shoulder x": (0.0, 0.40, 1, 0.0),
    },
    "march": {
        "left hip x": (-0.45, 0.55, 1, 0.0),
        "right hip x": (-0.45, 0.55, 1, 0.5),
        "left knee x": (0.75, 0.65, 1, 0.5),
        "right knee x": (0.75, 0.65, 1, 0.0),
        "left elbow x": (-1.30, 0.15, 1, 0.5),
        "right elbow x": (-1.30, 0.15, 1, 0.0),
        "left shoulder x": (0.0, 0.50, 1, 0.5),
        "right shoulder x": (0.0, 0.50, 1, 0.0),
    },
    "wave": {
        "right shoulder z": (-2.20, 0.15, 1, 0.0),
        "right elbow z": (-0.50, 0.60, 2, 0.0),
    },
    "clap": {
        "left shoulder x": (-1.00, 0.10, 2, 0.0),
        "right shoulder x": (-1.00, 0.10, 2, 0.0),
        "left shoulder y": (-0.25, 0.35, 2, 0.0),
        "right shoulder y": (0.25, 0.35, 2, 0.5),
        "left elbow x": (-0.80, 0.10, 2, 0.25),
        "right elbow x": (-0.80, 0.10, 2, 0.25),
    },
    "squat": {
        "left hip x": (-0.75, 0.70, 1, 0.0),
        "right hip x": (-0.75, 0.70, 1, 0.0),
        "left knee x": (1.00, 0.95, 1, 0.5),
        "right knee x": (1.00, 0.95, 1, 0.5),
        "left shoulder x": (-0.80, 0.60, 1, 0.0),
        "right shoulder x": (-0.80, 0.60, 1, 0.0),
    },
    "bow": {
        "pelvis x": (0.45, 0.45, 1, 0.75),
        "left hip x": (-0.45, 0.45, 1, 0.25),
        "right hip x": (-0.45, 0.45, 1, 0.25),
        "neck x": (0.10, 0.15, 1, 0.75),
    },
    "kick": {
        "right hip x": (-0.55, 0.75, 1, 0.0),
        "right knee x": (0.55, 0.50, 1, 0.25),
        "left shoulder x": (-0.20, 0.45, 1, 0.0),
        "right shoulder x": (0.20, 0.30, 1, 0.5),
    },
    "punch": {
        "left shoulder x": (-0.80, 0.70, 1, 0.0),
        "right shoulder x": (-0.80, 0.70, 1, 0.5),
        "left elbow x": (-1.10, 0.90, 1, 0.5),
        "right elbow x": (-1.10, 0.90, 1, 0.0),
        "pelvis y": (0.0, 0.30, 1, 0.0),
    },
}
AXES = "xyz"


def _table() -> Float[Tensor, "classes joints axes 4"]:
    """The programs as one tensor: offset, amplitude, harmonic, phase."""
    table = torch.zeros(len(PROGRAMS), len(HUMAN), 3, 4)
    for c, program in enumerate(PROGRAMS.values()):
        for key, term in program.items():
            joint, _, axis = key.rpartition(" ")
            table[c, HUMAN.names.index(joint), AXES.index(axis)] = torch.tensor(term)
    return table


def _tremor(noise: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
    """Second-order autoregression a_t = 1.6 a_{t-1} - 0.7 a_{t-2} + e_t, scaled to a standard deviation of about 1."""
    before = last = torch.zeros_like(noise[:, 0])
    path = []
    for shock in noise.unbind(1):
        before, last = last, 1.6 * last - 0.7 * before + shock
        path.append(last)
    return torch.stack(path, 1) / 4.6


def joint_angles(
    y: Int[Tensor, " n"], frames: int, draws: Draws, *, tremor: float = 0.04, style: float = 1.0
) -> Float[Tensor, "n t joints 3"]:
    """Rotation vectors of every joint for clips of the classes ``y``, in the style that ``draws`` gives each of them.

    A clip has its own tempo (1.6 to 2.4 cycles at ``style`` 1), phase, and a factor for every amplitude and offset;
    all joints tremble by ``tremor`` radians, a second-order autoregression.
    """
    table, joints = _table(), len(HUMAN)
    offset, amplitude, harmonic, phase = table[y].unbind(-1)
    tempo = 2.0 + 0.4 * style * (2 * draws.uniform(1, 1, 1) - 1)
    start = draws.uniform(1, 1, 1)
    size = 1 + 0.3 * style * (2 * draws.uniform(2, joints, 3) - 1)
    u = torch.arange(frames)[None, :, None, None] / frames
    turns = harmonic[:, None] * (tempo * u + start) + phase[:, None]
    angles = (size[:, 0] * offset)[:, None] + (size[:, 1] * amplitude)[:, None] * (2 * math.pi * turns).sin()
    return angles + tremor * _tremor(draws.normal(frames, joints * 3)).unflatten(2, (joints, 3))


def synthetic_motions(
    n: int,
    *,
    frames: int = 48,
    seed: int,
    noise: float = 0.005,
    tremor: float = 0.04,
    style: float = 1.0,
    name: str = "motions",
) -> Data:
    """``n`` clips of eight actions by people of several sizes: x (n, 3, frames, 15, 1) in metres, y in turn.

    Angles follow ``joint_angles``; positions follow from the kinematics of ``HUMAN``, 0.85 to 1.15 as large at
    ``style`` 1, facing any way within half a radian. The lowest joint of a frame stands on the floor y = 0, and the
    pelvis of the first frame above the origin. ``noise`` is the sensor's, in metres. The field ``frames`` is the number
    of frames of each clip. A clip depends on the seed and its position only.
    """
    if n < len(PROGRAMS) or frames < 4 or min(noise, tremor, style) < 0:
        raise InputError(
            f"motions: n={n}, frames={frames}, noise={noise}, tremor={tremor}, style={style}; "
            f"expected n >= {len(PROGRAMS)}, frames >= 4, the others not negative"
        )
    index = torch.arange(n)
    y, draws = index % len(PROGRAMS), Draws(seed, "motions", index)
    size = 1 + 0.15 * style * (2 * draws.uniform(1) - 1)
    facing = 0.5 * style * (2 * draws.uniform(1, 1) - 1) * torch.tensor([0.0, 1.0, 0.0])
    angles = joint_angles(y, frames, draws, tremor=tremor, style=style)
    turns = rotation(angles)
    turns[:, :, 0] = rotation(facing)[:, None, 0] @ turns[:, :, 0]
    places = HUMAN.forward(turns, torch.zeros(n, frames, 3), size.expand(n, frames))
    places[..., 1] -= places[..., 1].amin(-1, keepdim=True)
    x = (places + noise * draws.normal(frames, len(HUMAN), 3)).permute(0, 3, 1, 2)[..., None].contiguous()
    lengths = torch.full((n,), frames)
    return Data(x, y, tuple(PROGRAMS), (-3.0, 3.0), name=name, fields={"frames": lengths})
