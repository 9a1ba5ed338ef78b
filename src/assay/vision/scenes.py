"""Images with signs on which a patch can be put, and generated ones whose geometry and light are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import ordinary
from assay.runtime.random import Draws
from assay.vision.geometry import corners
from assay.vision.patch_renderer import PatchRenderer

Target = dict[str, Tensor]
SHAPES = ("square", "circle", "triangle")


@dataclass(frozen=True)
class Scenes:
    """n images (n, 3, H, W) in [0, 1] with m signs of one canonical shape: what a patch is made on and judged on.

    keypoints (m, k, 2) and boxes (m, 4) as x1 y1 x2 y2 in pixels; relight (m, c, 2) as the renderer's method has it;
    obj_to_img (m,) the image of each sign; labels (m,) its class; mask (1, h, w) where the patch is on the canonical
    sign and obj_mask where that is. Images without a sign are legal, and m = 0.
    """

    images: Float[Tensor, "n 3 H W"]
    keypoints: Float[Tensor, "m k 2"]
    relight: Float[Tensor, "m c 2"]
    obj_to_img: Int[Tensor, " m"]
    labels: Int[Tensor, " m"]
    mask: Float[Tensor, "1 h w"]
    obj_mask: Float[Tensor, "1 h w"]
    boxes: Float[Tensor, "m 4"] = None  # type: ignore[assignment]
    renderer: PatchRenderer = field(default_factory=PatchRenderer)

    def __post_init__(self) -> None:
        if self.boxes is None:
            box = torch.cat((self.keypoints.amin(1), self.keypoints.amax(1)), 1)
            object.__setattr__(self, "boxes", box.to(self.images))
        m = len(self.keypoints)
        counts = {n: len(getattr(self, n)) for n in ("relight", "obj_to_img", "labels", "boxes")}
        if set(counts.values()) != {m}:
            raise InputError(f"scenes: {m} signs with {counts}; expected one row a sign")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Int[Tensor, " b"]) -> Scenes:
        """The images at ``rows``, in that order, each once, with their signs."""
        place = torch.full((len(self),), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        moved = place[self.obj_to_img]
        kept = moved >= 0
        parts = {name: getattr(self, name)[kept] for name in ("keypoints", "relight", "labels", "boxes")}
        return replace(self, images=self.images[rows], obj_to_img=moved[kept], **parts)

    def targets(self) -> list[Target]:
        """For each image the boxes (k, 4) and labels (k,) of its signs."""
        found = []
        for image in range(len(self)):
            rows = self.obj_to_img == image
            found.append({"boxes": self.boxes[rows], "labels": self.labels[rows]})
        return found

    def render(self, patch: Float[Tensor, "3 h w"]) -> Float[Tensor, "n 3 H W"]:
        """The images with ``patch`` on every sign, on the patch's device."""
        held = (self.images, self.mask, self.keypoints, self.relight, self.obj_to_img, self.obj_mask)
        images, mask, keypoints, relight, obj_to_img, obj_mask = (ordinary(t.to(patch.device)) for t in held)
        if not len(keypoints):
            return images
        return self.renderer(images, patch, mask, keypoints, relight, obj_to_img, obj_mask=obj_mask)


def polygon_sign(shape: Literal["square", "circle", "triangle"], size: int) -> tuple[Tensor, Tensor]:
    """A drawn sign (3, size, size), white with a colored rim and a black bar, and its mask (1, size, size)."""
    if shape not in SHAPES:
        raise unknown("sign", str(shape), SHAPES)
    t = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(t, t, indexing="ij")
    depth = {
        "square": 1 - torch.maximum(x.abs(), y.abs()),
        "circle": 1 - (x.square() + y.square()).sqrt(),
        "triangle": torch.minimum((1 + y) / 2 - x.abs(), (1 - y) / 2) / 1.2,
    }[shape]
    rim = torch.tensor({"square": (0.1, 0.2, 0.8), "circle": (0.8, 0.1, 0.1), "triangle": (0.9, 0.7, 0.0)}[shape])
    sign = torch.where(depth > 0.15, torch.ones(3, 1, 1), rim[:, None, None])
    bar = (depth > 0.15) & ((x.abs() if shape == "square" else (y - 0.2).abs()) < 0.18)
    return sign.masked_fill(bar, 0.0), (depth >= 0).float()[None]


def generate_scenes(
    backgrounds: Float[Tensor, "n 3 H W"],
    sign: Float[Tensor, "3 s s"],
    obj_mask: Float[Tensor, "1 s s"],
    mask: Float[Tensor, "1 s s"],
    label: int,
    *,
    seed: int,
    points: int = 4,
    scale: tuple[float, float] = (0.35, 0.55),
    rotation: float = 15.0,
    translation: float = 0.4,
    perspective: float = 0.1,
    alpha: tuple[float, float] = (0.2, 0.9),
    beta: tuple[float, float] = (0.0, 0.4),
    noise: float = 0.0,
    renderer: PatchRenderer | None = None,
) -> Scenes:
    """One sign on each background, under a random homography and in a random light.

    The sign's side is ``scale`` of the image's, turned by up to ``rotation`` degrees, off the middle by up to
    ``translation`` of the image's side as far as it stays inside, its corners each off by up to ``perspective`` of its
    side. Its colors are alpha v + beta with beta of at most 1 - alpha, which ``relight`` holds (m, 1, 2); normal
    ``noise`` comes on top of all pixels. The paper's synthetic benchmark, which pastes canonical signs, is
    perspective = 0, alpha = (1, 1), beta = (0, 0). ``renderer`` is that of the scenes.
    """
    n, height, width = len(backgrounds), *backgrounds.shape[2:]
    draws = Draws(seed, "scenes", torch.arange(n))
    u = 2 * draws.uniform(4).double() - 1
    side = min(height, width) * (scale[0] + (scale[1] - scale[0]) * (u[:, 0] + 1) / 2)
    angle = torch.deg2rad(rotation * u[:, 1])
    base = corners((2, 2), points) * 2 - 1
    bend = perspective * (2 * draws.uniform(points, 2).double() - 1)
    local = (base + 2 * bend) * side[:, None, None] / 2
    cos, sin = angle.cos(), angle.sin()
    turned = local @ torch.stack((torch.stack((cos, sin), 1), torch.stack((-sin, cos), 1)), 1)
    frame = torch.tensor((width - 1.0, height - 1.0), dtype=torch.float64)
    room_low, room_high = -turned.amin(1), frame - turned.amax(1)
    middle = (frame / 2 + translation * frame * u[:, 2:]).clamp(room_low, torch.maximum(room_low, room_high))
    keypoints = turned + middle[:, None]
    a = alpha[0] + (alpha[1] - alpha[0]) * draws.uniform(1).to(backgrounds)[:, 0]
    b = (beta[0] + (beta[1] - beta[0]) * draws.uniform(1).to(backgrounds)[:, 0]).minimum(1 - a)
    light = torch.stack((a, b), 1)[:, None]
    order = torch.arange(n)
    images = PatchRenderer()(backgrounds, sign.to(backgrounds), obj_mask, keypoints, light, order)
    if noise:
        images = (images + noise * draws.normal(3, height, width).to(images)).clamp(0, 1)
    labels = torch.full((n,), label, dtype=torch.int64)
    return Scenes(images, keypoints, light, order, labels, mask, obj_mask, renderer=renderer or PatchRenderer())


def joined_images(scenes: Sequence[Scenes]) -> tuple[Float[Tensor, "n 3 H W"], list[Target]]:
    """The images and targets of several scenes in a row: what a detector of several classes is trained on."""
    return torch.cat([s.images for s in scenes]), [t for s in scenes for t in s.targets()]
