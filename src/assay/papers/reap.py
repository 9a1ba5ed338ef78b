"""REAP: a digital patch put on real signs by a geometric and a lighting transform, both fitted and differentiable.

What decides at this scale are the transforms: key points, masks, pasted pixels and gradients by closed forms and finite
differences, the whole rendering against one in NumPy that takes its homography from a singular vector and looks up each
pixel by itself, the light against numpy's percentiles, and on generated scenes the rank correlation of fitted and true
contrast. Generated scenes take the place of the 14,651 annotated signs, whose images are not free to download.

The benchmark's finding, that attacks fall short on realistic scenes of what they reach on pasted ones, needs detectors
for street scenes. At gpu scale a small detector is trained on generated scenes and attacked (support): patches made and
judged on pasted signs, made and judged under the transforms, random ones, and judged without relighting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from assay.attacks import RP2Patch
from assay.data import Data, load_data
from assay.data.outsets import photo_patches
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.random import derive, numpy_rng, seeded, torch_rng
from assay.training import Plan
from assay.vision import (
    GridDetector,
    PatchBenchmark,
    PatchRenderer,
    Scenes,
    attack_success_rate,
    fit_detector,
    generate_scenes,
    joined_images,
    match,
    patch_mask,
    polygon_sign,
)

SIGN = 32  # pixels of the canonical sign
INCHES = 36 * 25.4  # of its side, in mm
POINTS = {"square": 4, "circle": 4, "triangle": 3}
END = SIGN - 1.0
CORNERS: dict[int, list[tuple[float, float]]] = {
    4: [(0, 0), (END, 0), (END, END), (0, END)],
    3: [(END / 2, 0), (END, END), (0, END)],
}
PASTED: dict[str, Any] = {"perspective": 0.0, "rotation": 0.0, "alpha": (1.0, 1.0), "beta": (0.0, 0.0)}
NONE, LARGE = {"detector": 0}, {"detector": 4000, "judged": 300, "attack": 1000}
Rows = list[dict[str, Any]]

PAPER = Paper(
    slug="reap",
    title="REAP: A Large-Scale Realistic Adversarial Patch Benchmark",
    authors="Nabeel Hingun, Chawin Sitawarin, Jerry Li, David Wagner",
    year=2022,
    arxiv="2212.05680",
    room="vision",
    also=("attacks",),
    kind="benchmark + method",
    implements=(
        "vision.PatchRenderer",
        "vision.PatchBenchmark",
        "vision.fit_relight",
        "vision.get_transform_matrix",
        "vision.patch_mask",
        "vision.keypoints_from_mask",
        "vision.load_reap",
        "attacks.RP2Patch",
        "attacks.DPatch",
    ),
    claim="A patch can be put on real signs as they stand and are lit, differentiably, to judge attacks on detectors.",
    headline="14,651 signs: patches on realistic scenes succeed far less often than synthetic ones suggest.",
    peers=("kornia.geometry.warp_perspective", "art.attacks.evasion.RobustDPatch"),
    shams={
        "inverse-homography": "the matrix from image to sign is used as that from sign to image; light and patch stay",
        "shuffled-relight": "the fitted light of each sign is given to the next one; geometry stays",
    },
    scales=(
        Scale("smoke", 1, {"data": "photos", "side": 48, "signs": 30, **NONE}),
        Scale("claim", 5, {"data": "cifar10:test", "side": 96, "signs": 100, **NONE}),
        Scale("gpu", 5, {"data": "cifar10:test", "side": 96, "signs": 100, **LARGE}),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Shammed(PatchRenderer):
    """PatchRenderer, or one of its shams. The light is always fitted under the right geometry."""

    sham: str | None = None

    def matrix(self, size: tuple[int, int], keypoints: Tensor) -> Tensor:
        forward = super().matrix(size, keypoints)
        return torch.linalg.inv(forward) if self.sham == "inverse-homography" else forward

    def fit(self, *args: Any, **options: Any) -> Tensor:
        found = PatchRenderer(relight=self.relight, q=self.q).fit(*args, **options)
        return found.roll(1, 0) if self.sham == "shuffled-relight" else found


@cache
def _photos(source: str) -> Tensor:
    return load_data(source).x


def _backgrounds(scale: Scale, count: int, seed: int) -> Float[Tensor, "n 3 s s"]:
    """Images of the source enlarged to the scene, or crops of photographs."""
    side = scale["side"]
    if scale["data"] == "photos":
        like = Data(torch.zeros(2, 3, side, side), torch.tensor([0, 1]), ("a", "b"))
        return photo_patches(like, count, seed=seed)
    images = _photos(scale["data"])
    rows = torch.randperm(len(images), generator=torch_rng(seed, "backgrounds"))[:count]
    return F.interpolate(images[rows], size=(side, side), mode="bilinear").clamp(0, 1)


def _scenes(backgrounds: Tensor, shape: str, seed: int, **options: Any) -> Scenes:
    """One sign of a shape on each background, with a patch of 18 x 18 inches in its middle: a quarter of its area."""
    sign, area = polygon_sign(shape, SIGN)  # type: ignore[arg-type]
    mask = patch_mask("1_18x18_middle", (SIGN, SIGN), (INCHES, INCHES))
    label = list(POINTS).index(shape)
    options = {"noise": 0.02, "points": POINTS[shape], "seed": seed} | options
    return generate_scenes(backgrounds, sign, area, mask, label, **options)


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Scenes of squares and of triangles, the checks that no sham touches, and at gpu scale the attacked detector."""
    n = scale["signs"]
    backgrounds = _backgrounds(scale, 2 * n, seed)
    fixed = {"mask": _mask_off(), "paste": _paste_off(seed), "gradient": _gradient_off(seed), "asr": _asr_off(seed)}
    return {
        "square": _scenes(backgrounds[:n], "square", derive(seed, "square")),
        "triangle": _scenes(backgrounds[n:], "triangle", derive(seed, "triangle")),
        "fixed": fixed,
        "attacked": _attacked(scale, seed) if scale["detector"] else None,
    }


def _mask_off() -> int:
    """How many pixels of 10 x 10 inches at the bottom of 36 x 36, in 64, are off rows 46 to 63 and columns 23 to 40."""
    mask = patch_mask("1_10x10_bottom", (64, 64), (INCHES, INCHES))[0]
    wanted = {(row, column) for row in range(46, 64) for column in range(23, 41)}
    return len(wanted ^ {(int(r), int(c)) for r, c in mask.nonzero()})


def _paste_off(seed: int) -> float:
    """Largest difference from slicing when the sign's corners are pixels and the light is alpha 1, beta 0."""
    images = torch.rand(2, 3, 40, 40, generator=torch_rng(seed, "paste"))
    corners = torch.tensor([CORNERS[4], CORNERS[4]], dtype=torch.float64) + torch.tensor([[[3.0, 5.0]], [[0.0, 0.0]]])
    light = torch.tensor([[[1.0, 0.0]]]).expand(2, 1, 2)
    patch = torch.rand(3, SIGN, SIGN, generator=torch_rng(seed, "patch"))
    found = PatchRenderer()(images, patch, torch.ones(1, SIGN, SIGN), corners, light, torch.arange(2))
    wanted = images.clone()
    wanted[0, :, 5 : 5 + SIGN, 3 : 3 + SIGN] = patch
    wanted[1, :, :SIGN, :SIGN] = patch
    return float((found - wanted).abs().max())


def _gradient_off(seed: int) -> float:
    """Largest difference of the gradient in the patch of a random sum of pixels from central differences, relative."""
    g = torch_rng(seed, "gradient")
    images = torch.rand(3, 3, 20, 20, generator=g, dtype=torch.float64)
    patch = 0.2 + 0.6 * torch.rand(3, 6, 6, generator=g, dtype=torch.float64)
    weight = torch.randn(images.shape, generator=g, dtype=torch.float64)
    corners = torch.tensor([[[3.0, 2.0], [14.0, 4.0], [16.0, 15.0], [2.0, 13.0]]] * 3, dtype=torch.float64)
    corners = corners + torch.rand(3, 4, 2, generator=g, dtype=torch.float64)
    light = torch.tensor([[[0.5, 0.2]], [[0.9, 0.0]], [[0.3, 0.4]]], dtype=torch.float64)
    where, mask = torch.arange(3), torch.ones(1, 6, 6)

    def value(p: Tensor) -> Tensor:
        return (weight * PatchRenderer()(images, p, mask, corners, light, where)).sum()

    leaf = patch.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(leaf), leaf)
    steps = 1e-5 * torch.eye(patch.numel(), dtype=torch.float64).view(-1, *patch.shape)
    wanted = torch.stack([(value(patch + d) - value(patch - d)) / 2e-5 for d in steps]).view_as(patch)
    return float((found - wanted).abs().max() / wanted.abs().max())


def _asr_off(seed: int) -> float:
    """Largest difference of the success rate from counting by hand, over drawn lists of detections of 8 signs each.

    Signs lie far apart, and each prediction is a sign's own box or one that overlaps it by a third.
    """
    rng, off = numpy_rng(seed, "lists"), []
    boxes = torch.tensor([[40.0 * k, 0.0, 40.0 * k + 20, 20.0] for k in range(8)])
    for _ in range(20):
        exact, scores = rng.random((2, 8)) < 0.7, rng.random((2, 8))
        seen = []
        for hit, score in zip(exact, scores, strict=True):
            moved = boxes + torch.from_numpy(np.where(hit, 0.0, 10.0)).float()[:, None] * torch.tensor([1.0, 0, 1, 0])
            found = {"boxes": moved, "scores": torch.from_numpy(score), "labels": torch.zeros(8, dtype=torch.int64)}
            seen.append(match([found], boxes, torch.zeros(8, dtype=torch.int64), 0).sign_scores >= 0.5)
        clean = [k for k in range(8) if exact[0, k] and scores[0, k] >= 0.5]
        lost = [k for k in clean if not (exact[1, k] and scores[1, k] >= 0.5)]
        if clean:
            off.append(abs(attack_success_rate(seen[0], seen[1]) - len(lost) / len(clean)))
    return max(off)


def homography(source: Any, target: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "3 3"]:
    """The matrix from source to target points: the null vector of the direct linear transform; affine for three."""
    if len(target) == 3:
        ones = np.ones((3, 1))
        rows = np.linalg.inv(np.hstack((source, ones))) @ target
        return np.vstack((rows.T, (0, 0, 1)))
    equations = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        equations += [(x, y, 1, 0, 0, 0, -u * x, -u * y, -u), (0, 0, 0, x, y, 1, -v * x, -v * y, -v)]
    return np.linalg.svd(np.array(equations, float))[2][-1].reshape(3, 3)


def looked_up(points: np.ndarray, side: int) -> Float[np.ndarray, "side side 2"]:
    """Where on the canonical sign each pixel of a square image lies."""
    inverse = np.linalg.inv(homography(CORNERS[len(points)], points))
    y, x = np.mgrid[:side, :side].astype(float)
    found = np.stack((x, y, np.ones_like(x)), -1) @ inverse.T
    return found[..., :2] / found[..., 2:]


def bilinear(sign: Float[np.ndarray, "c h w"], place: np.ndarray) -> np.ndarray:
    """Values (c, side, side) of a canonical image at places x, y; zero outside."""
    padded = np.pad(sign, ((0, 0), (1, 1), (1, 1)))
    inside = (place.min(2) > -1) & (place.max(2) < SIGN)
    place = np.where(inside[..., None], place, -1.0) + 1
    low = np.clip(np.floor(place).astype(int), 0, SIGN)
    (fx, fy), (x, y) = np.moveaxis(place - low, -1, 0), np.moveaxis(low, -1, 0)
    corner = [padded[:, y + dy, x + dx] for dy in (0, 1) for dx in (0, 1)]
    return corner[0] * (1 - fx) * (1 - fy) + corner[1] * fx * (1 - fy) + corner[2] * (1 - fx) * fy + corner[3] * fx * fy


def reference(scenes: Scenes, patch: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The light (2,) of the k-th sign by numpy's percentiles, and its image with the patch."""
    image, points = scenes.images[k].numpy(), scenes.keypoints[k].numpy()
    area, mask = scenes.obj_mask.numpy(), scenes.mask.numpy()
    place = looked_up(points, image.shape[1])
    near = np.rint(place).astype(int)
    on = (near.min(2) >= 0) & (near.max(2) < SIGN)
    near = np.where(on[..., None], near, 0)
    on &= area[0, near[..., 1], near[..., 0]] > 0.5
    low, high = np.percentile(image[:, on], (20, 80))
    shown = bilinear(np.clip((high - low) * patch + low, 0, 1) * mask * area, place)
    cover = bilinear(mask * area, place)
    return np.array((high - low, low)), (1 - cover) * image + shown


def _judged(scenes: Scenes, shape: str, sham: str | None, seed: int) -> Rows:
    """Of all signs the errors of key points, light and rendering, and fitted and true alpha with their correlation."""
    method = _Shammed(sham=sham)
    wide = replace(scenes, images=scenes.images.double(), mask=scenes.mask.double(), obj_mask=scenes.obj_mask.double())
    light = method.fit(wide.images, wide.keypoints, wide.obj_to_img, wide.obj_mask)
    patch = numpy_rng(seed, "patch").random((3, SIGN, SIGN))
    shown = replace(wide, relight=light, renderer=method).render(torch.from_numpy(patch)).numpy()
    matrices = method.matrix((SIGN, SIGN), wide.keypoints).numpy()
    ends = np.array([(x, y, 1.0) for x, y in CORNERS[wide.keypoints.shape[1]]])
    moved = np.einsum("mij,kj->mki", matrices, ends)
    wanted = [reference(wide, patch, k) for k in range(len(wide))]
    fitted, true = light[:, 0, 0].tolist(), scenes.relight[:, 0, 0].tolist()
    errors = {
        "points": float(np.abs(moved[..., :2] / moved[..., 2:] - wide.keypoints.numpy()).max()),
        "light": float(np.abs(light[:, 0].numpy() - np.stack([w[0] for w in wanted])).max()),
        "pixels": float(np.abs(shown - np.stack([w[1] for w in wanted])).max()),
        "rank": float(spearmanr(fitted, true).statistic),
    }
    signs = zip(fitted, true, strict=True)
    return [{"arm": shape, **errors}, *({"arm": f"{shape} signs", "fitted": f, "true": t} for f, t in signs)]


def _detector(scale: Scale, backgrounds: Tensor, seed: int) -> nn.Module:
    """A small detector of the three shapes, trained on transformed and on pasted signs, as many of each."""
    made = []
    for shape, part in zip(POINTS, backgrounds.chunk(3), strict=True):
        half = len(part) // 2
        made.append(_scenes(part[:half], shape, derive(seed, shape)))
        made.append(_scenes(part[half:], shape, derive(seed, shape, "pasted"), **PASTED))
    images, targets = joined_images(made)
    with seeded(seed, "detector"):
        start = GridDetector(len(POINTS))
    plan = Plan(steps=scale["detector"], batch_size=16, lr=3e-3, schedule="onecycle")
    return fit_detector(start, images, targets, plan, seed=seed)


def _attacked(scale: Scale, seed: int) -> dict[str, Any]:
    """A detector, images of squares to make patches on and others to judge on, and what no sham changes."""
    n, m = scale["judged"], 50
    backgrounds = _backgrounds(scale, 4 * n + m, derive(seed, "detector"))
    detector: Any = _detector(scale, backgrounds[n + m :], seed)
    real, pasted = (
        {
            "made": _scenes(backgrounds[:m], "square", derive(seed, "made"), **options),
            "judged": _scenes(backgrounds[m : n + m], "square", derive(seed, "judged"), **options),
        }
        for options in ({}, PASTED)
    )
    attack = RP2Patch(steps=scale["attack"], lr=0.1, n_eot=8)
    flat = attack(detector, pasted["made"], seed=seed)
    benchmark = PatchBenchmark(min_area=0.0)
    judged = benchmark.fit(detector, real["judged"])
    random = torch.rand(3, SIGN, SIGN, generator=torch_rng(seed, "random")) * real["made"].mask
    rows: Rows = [
        {"arm": "pasted", "success": benchmark.fit(detector, pasted["judged"]).run(flat).asr},
        {"arm": "made on pasted", "success": judged.run(flat).asr},
        {"arm": "random patch", "success": judged.run(random).asr},
        {"arm": "clean", "ap": judged.run().ap},
    ]
    return {"detector": detector, "attack": attack, "real": real, "rows": rows}


def _transformed(given: dict[str, Any], sham: str | None, seed: int) -> Rows:
    """The patch made and judged under the transforms, and judged without relighting."""
    detector, rows = given["detector"], []
    made, judged = (_relit(given["real"][part], sham) for part in ("made", "judged"))
    patch = given["attack"](detector, made, seed=seed)
    unlit = replace(judged, renderer=_Shammed(sham=sham, relight="none"), relight=torch.ones(len(judged.labels), 1, 2))
    for arm, scenes in (("transformed", judged), ("judged unlit", unlit)):
        rows.append({"arm": arm, "success": PatchBenchmark(min_area=0.0).fit(detector, scenes).run(patch).asr})
    return rows


def _relit(scenes: Scenes, sham: str | None) -> Scenes:
    """The scenes with the light that the method fits to them."""
    method = _Shammed(sham=sham)
    light = method.fit(scenes.images, scenes.keypoints, scenes.obj_to_img, scenes.obj_mask)
    return replace(scenes, relight=light, renderer=method)


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """The transforms of all scenes against the references, the fixed checks, and at gpu scale the patch under them."""
    rows = [row for shape in ("square", "triangle") for row in _judged(given[shape], shape, sham, seed)]
    rows += [{"arm": name, "exact": value} for name, value in given["fixed"].items()]
    if given["attacked"] is not None:
        rows += [*given["attacked"]["rows"], *_transformed(given["attacked"], sham, seed)]
    return Table.of(rows)


def claims(table: Table) -> list[Claim]:
    """The transforms decide; success rates of a small detector, at gpu scale, support."""

    def exact(text: str, observed: np.ndarray, at_most: float, *shams: str) -> Claim:
        return Claim(text, observed, at_most=at_most, rule="exact", refuted_by=shams)

    turned, mixed = "inverse-homography", "shuffled-relight"
    fixed = {name: table.per_seed("exact", np.max, arm=name) for name in ("mask", "paste", "gradient", "asr")}
    found = [
        exact("key points of the sign, pixels from those in the image", table.per_seed("points", np.max), 1e-4, turned),
        exact("light of each sign: difference from numpy's percentiles", table.per_seed("light", np.max), 1e-9, mixed),
        exact("images with the patch: difference from NumPy's", table.per_seed("pixels", np.max), 1e-9, turned, mixed),
        exact("patch on corners that are pixels: difference from slicing", fixed["paste"], 1e-5),
        exact("gradient in the patch: relative difference from central differences", fixed["gradient"], 1e-6),
        exact("10 x 10 inches on 36 x 36 in 64 pixels: pixels off rows 46-63, columns 23-40", fixed["mask"], 0),
        exact("success rate on drawn lists of detections: difference from counting", fixed["asr"], 1e-6),
        Claim(
            "rank correlation of fitted and true contrast, least of both shapes",
            table.per_seed("rank", np.min),
            at_least=0.8,
            refuted_by=(mixed,),
        ),
    ]
    return found + (_support(table) if table.where(arm="transformed").rows else [])


def _support(table: Table) -> list[Claim]:
    def gain(text: str, arm: str, other: str, least: float) -> Claim:
        return Claim(text, table.gain(arm, other, "success"), at_least=least, key=False)

    unlit = np.abs(table.gain("judged unlit", "transformed", "success"))
    return [
        gain("success of patches on pasted signs over those on transformed ones", "pasted", "transformed", 0.1),
        gain("success under the transforms over random patches", "transformed", "random patch", 0.15),
        Claim("change of success where patches are not relit", unlit, at_least=0.05, key=False),
    ]


def figure(table: Table) -> Figure:
    """Fitted against true contrast, and success rates where a detector was attacked, one dot a seed."""
    arms = ["pasted", "made on pasted", "transformed", "judged unlit", "random patch"]
    attacked = bool(table.where(arm="transformed").rows)
    drawing = Figure(figsize=(9.6, 3.6) if attacked else (4.2, 3.6), layout="constrained")
    panels = np.atleast_1d(drawing.subplots(1, 1 + attacked))
    for shape in ("square", "triangle"):
        fitted, true = (table.values(c, arm=f"{shape} signs") for c in ("fitted", "true"))
        panels[0].plot(true, fitted, "o", ms=2, alpha=0.5, label=shape)
    panels[0].set(xlabel="true contrast α", ylabel="fitted contrast", title="The light of generated signs")
    panels[0].legend(frameon=False)
    for k, arm in enumerate(arms if attacked else []):
        values = table.per_seed("success", arm=arm)
        panels[1].bar(k, values.mean(), 0.6, color="0.85")
        panels[1].plot(np.full(len(values), k), values, "o", ms=3)
    if attacked:
        panels[1].set_xticks(range(len(arms)), arms, fontsize=8)
        panels[1].set(ylim=(0, 1.02), title="Share of detected squares that are lost")
    return drawing
