"""Recorded motions from local files: ``ntu:FOLDER`` (NTU RGB+D, .skeleton), ``hdm05:FOLDER`` (HDM05, .asf, .amc)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.data import Data
from assay.data.kinematics import Skeleton, minimal_rotation, rotation
from assay.runtime.errors import InputError

NTU_FRAMES, NTU_PERSONS, NTU_JOINTS = 300, 2, 25
NTU_PARENTS = (1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, -1, 22, 7, 24, 11)
"""The tree of the 25 joints from the spine at the shoulders, joint 20; a joint may stand before its parent."""
NTU_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")
HDM05_NAME = re.compile(r"HDM_([a-z]+)_(.+?)_\d+_(\d+)$")
INCH = 0.0254


def repeated(x: Float[Tensor, "c t v m"], frames: int) -> Float[Tensor, "c f v m"]:
    """``x`` cut to ``frames``, or repeated from its start until there are as many."""
    return x[:, torch.arange(frames) % x.shape[1]]


def read_ntu(path: Path) -> Float[Tensor, "3 t 25 2"]:
    """The positions in metres of the two bodies that move most, the more mobile first; an absent one is 0.

    The text holds the number of frames; for each frame the number of bodies; for each body a line about it, the number
    of joints and a line for each joint, which begins with x, y and z.
    """
    try:
        lines = iter(path.read_text(encoding="utf-8").split("\n"))
        count = int(next(lines))
        bodies = np.zeros((4, count, NTU_JOINTS, 3), np.float32)
        for t in range(count):
            for body in range(int(next(lines))):
                next(lines)
                joints = [next(lines).split()[:3] for _ in range(int(next(lines)))]
                if body < len(bodies):
                    bodies[body, t] = np.array(joints, np.float32)[:NTU_JOINTS]
    except (OSError, ValueError, StopIteration, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); expected an NTU skeleton"
        ) from error
    if count == 0 or not bodies.any():
        raise InputError(f"{path}: no frame with a body; expected at least one")
    energy = [b[b.any((1, 2))].std((0, 1)).sum() if b.any() else -1.0 for b in bodies]
    chosen = np.argsort(energy)[::-1][:NTU_PERSONS]
    return torch.from_numpy(bodies[chosen].transpose(3, 1, 2, 0).copy())


def normalised(x: Float[Tensor, "3 t 25 2"]) -> Float[Tensor, "3 t 25 2"]:
    """The first person's mid-spine (joint 1) at the origin, in the first frame its spine along z, shoulders along x.

    As Shi et al. (2019, arXiv:1805.07694) prepare NTU RGB+D. Frames where the first person is absent are dropped; an
    absent second person stays 0.
    """
    x = x[:, x[..., 0].abs().sum((0, 2)) > 0]
    there = (x != 0).any(0, keepdim=True)
    x = (x - x[:, :, 1:2, :1]) * there
    for low, high, axis in ((0, 1, (0.0, 0.0, 1.0)), (4, 8, (1.0, 0.0, 0.0))):
        turn = minimal_rotation(x[:, 0, high, 0] - x[:, 0, low, 0], torch.tensor(axis))
        x = torch.einsum("dc,ctvm->dtvm", turn, x)
    return x


def ntu(folder: Path) -> Data:
    """All ``.skeleton`` files under ``folder`` (Shahroudy et al., 2016, arXiv:1604.02808).

    x (n, 3, 300, 25, 2) in metres, normalised, shorter clips repeated; y the action among those found; fields:
    ``frames``, the real frames of each clip, and ``setup``, ``camera``, ``subject``, ``replication`` as in the names.
    """
    files = sorted(p for p in folder.rglob("*.skeleton") if NTU_NAME.search(p.stem)) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder}: no NTU skeletons; expected files such as S001C001P001R001A001.skeleton")
    clips = [normalised(read_ntu(path))[:, :NTU_FRAMES] for path in files]
    numbers = torch.tensor([[int(g) for g in NTU_NAME.search(p.stem).groups()] for p in files])  # type: ignore[union-attr]
    names = ("setup", "camera", "subject", "replication")
    fields = {name: numbers[:, k] for k, name in enumerate(names)}
    return _data(clips, [f"A{a:03d}" for a in numbers[:, 4].tolist()], NTU_FRAMES, f"ntu:{folder}", fields)


def _data(clips: list[Tensor], labels: list[str], frames: int, name: str, fields: dict[str, Tensor]) -> Data:
    classes = tuple(sorted(set(labels)))
    x = torch.stack([repeated(clip, frames) for clip in clips])
    top = float(math.ceil(float(x.abs().max())))
    y = torch.tensor([classes.index(label) for label in labels])
    lengths = torch.tensor([min(clip.shape[1], frames) for clip in clips])
    return Data(x, y, classes, (-top, top), name, fields={"frames": lengths, **fields})


class Acclaim:
    """The skeleton of an ``.asf`` file, and motions of it from ``.amc`` files (Acclaim's formats).

    A bone turns by R_parent C M C^-1, C its axis and M its degrees of freedom, both angles about x, y and z in turn;
    its end lies ``length`` along ``direction`` from its start. Lengths are inches times the file's unit of length.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._read(path.read_text(encoding="utf-8").split("\n"))
        except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: cannot be read ({reason}); expected an Acclaim skeleton (.asf)") from error

    def _read(self, lines: list[str]) -> None:
        unit, section, order = 1.0, "", ["tx", "ty", "tz", "rx", "ry", "rz"]
        bones: dict[str, dict[str, list[str]]] = {}
        parent = {"root": ""}
        bone: dict[str, list[str]] = {}
        for words in (line.split() for line in lines):
            if not words or words[0].startswith("#"):
                continue
            if words[0].startswith(":"):
                section = words[0]
            elif section == ":units" and words[0] == "length":
                unit = float(words[1])
            elif section == ":root" and words[0] == "order":
                order = [w.lower() for w in words[1:]]
            elif section == ":bonedata":
                if words[0] == "begin":
                    bone = {}
                elif words[0] == "end":
                    bones[bone["name"][0]] = bone
                else:
                    bone[words[0]] = words[1:]
            elif section == ":hierarchy" and words[0] not in ("begin", "end"):
                parent |= dict.fromkeys(words[1:], words[0])
        names = tuple(parent)
        metres = INCH / unit
        offsets = [(0.0, 0.0, 0.0)]
        for name in names[1:]:
            way = np.array(bones[name]["direction"], float) * float(bones[name]["length"][0]) * metres
            offsets.append((float(way[0]), float(way[1]), float(way[2])))
        self.skeleton = Skeleton(names, (-1, *(names.index(parent[n]) for n in names[1:])), tuple(offsets))
        self.metres = metres
        self.axes = torch.tensor([[0.0] * 3] + [[float(a) for a in bones[n]["axis"][:3]] for n in names[1:]])
        self.dof = {"root": order} | {n: bones[n].get("dof", []) for n in names[1:]}

    def motion(self, path: Path, stride: int = 1) -> Float[Tensor, "3 t joints 1"]:
        """Positions in metres of every ``stride``-th frame of an ``.amc`` file."""
        try:
            root, angles = self._frames(path.read_text(encoding="utf-8").split("\n"), stride)
        except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path}: cannot be read ({reason}); expected a motion (.amc) of this skeleton") from error
        axis = _euler(self.axes)
        local = axis @ _euler(angles) @ axis.mT
        return self._places(local, root * self.metres).permute(2, 0, 1)[..., None]

    def _places(self, local: Float[Tensor, "t v 3 3"], root: Float[Tensor, "t 3"]) -> Float[Tensor, "t v 3"]:
        """A bone's own turn moves its own end, unlike that of a joint, which moves its children's."""
        parents, offsets = self.skeleton.parents, torch.tensor(self.skeleton.offsets)
        frames, places = [local[:, 0]], [root]
        for k, parent in enumerate(parents[1:], 1):
            frames.append(frames[parent] @ local[:, k])
            places.append(places[parent] + (frames[k] @ offsets[k]))
        return torch.stack(places, 1)

    def _frames(self, lines: list[str], stride: int) -> tuple[Float[Tensor, "t 3"], Float[Tensor, "t v 3"]]:
        numbered = [k for k, line in enumerate(lines) if line.strip().isdigit()]
        root, angles = np.zeros((len(numbered), 3)), np.zeros((len(numbered), len(self.skeleton), 3))
        if not numbered:
            raise ValueError("no frame")
        for t, (start, stop) in enumerate(zip(numbered, [*numbered[1:], len(lines)], strict=True)):
            for name, *values in (line.split() for line in lines[start + 1 : stop] if line.strip()):
                joint = self.skeleton.names.index(name)
                for freedom, value in zip(self.dof[name], values, strict=True):
                    target = root[t] if freedom[0] == "t" else angles[t, joint]
                    target["xyz".index(freedom[1])] = float(value)
        return torch.from_numpy(root[::stride]).float(), torch.from_numpy(angles[::stride]).float()


def _euler(degrees: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s 3 3"]:
    """Rz Ry Rx of angles in degrees about x, y and z."""
    about = torch.diag_embed(torch.deg2rad(degrees))
    x, y, z = (rotation(about[..., k, :]) for k in range(3))
    return z @ y @ x


def hdm05(folder: Path, *, stride: int = 4, frames: int = 300) -> Data:
    """All ``.amc`` files under ``folder`` with the ``.asf`` of their actor (Mueller et al., 2007, CG-2007-2).

    Files are named HDM_<actor>_<action>_<take>_<frames a second>.amc and HDM_<actor>.asf. x (n, 3, 300, joints, 1) in
    metres, every fourth of 120 frames a second, the root at the origin of every frame, shorter clips repeated; y the
    action among those found; fields: ``frames``, the real frames of each clip, and ``subject``.
    """
    files = sorted(p for p in folder.rglob("*.amc") if HDM05_NAME.match(p.stem)) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder}: no motions; expected files such as HDM_bd_walk2StepsLstart_001_120.amc")
    skeletons: dict[str, Acclaim] = {}
    clips, labels, actors = [], [], []
    for path in files:
        found = HDM05_NAME.match(path.stem)
        assert found is not None
        actor, action = found[1], found[2]
        if actor not in skeletons:
            asf = next(iter(sorted(folder.rglob(f"HDM_{actor}.asf"))), folder / f"HDM_{actor}.asf")
            skeletons[actor] = Acclaim(asf)
        motion = skeletons[actor].motion(path, stride)
        clips.append((motion - motion[:, :, :1])[:, :frames])
        labels.append(action)
        actors.append(actor)
    if len({clip.shape[2] for clip in clips}) > 1:
        raise InputError(f"{folder}: skeletons of different numbers of joints; expected one")
    subject = torch.tensor([sorted(skeletons).index(actor) for actor in actors])
    return _data(clips, labels, frames, f"hdm05:{folder}", {"subject": subject})
