"""Patches on signs: pasting, blending, several signs an image, generated scenes, and the annotations' file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from assay.runtime.errors import InputError
from assay.vision import PatchRenderer, Scenes, corners, generate_scenes, load_reap, move_points, polygon_sign
from assay.vision.geometry import SOURCES
from assay.vision.scenes import SHAPES

PLAIN = torch.tensor([[[1.0, 0.0]]])


def colors(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def at(x: float, y: float, size: int = 8) -> Tensor:
    return corners((size, size))[None] + torch.tensor([x, y])


def test_a_patch_at_rest_is_pasted() -> None:
    images, patch = colors(1, 3, 20, 24), colors(3, 8, 8, seed=1)
    found = PatchRenderer()(images, patch, torch.ones(1, 8, 8), at(5, 3), PLAIN, torch.tensor([0]))
    wanted = images.clone()
    wanted[0, :, 3:11, 5:13] = patch
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert images.equal(colors(1, 3, 20, 24))
    half = torch.zeros(1, 8, 8)
    half[:, 4:] = 1
    area = torch.zeros(1, 8, 8)
    area[:, :, :6] = 1
    part = PatchRenderer()(images, patch, half, at(5, 3), PLAIN, torch.tensor([0]), obj_mask=area)
    wanted = images.clone()
    wanted[0, :, 7:11, 5:11] = patch[:, 4:, :6]
    torch.testing.assert_close(part, wanted, rtol=0, atol=1e-5)


def test_edges_blend_without_a_seam() -> None:
    grey, turned = torch.full((1, 3, 30, 30), 0.6), torch.tensor([[[4.3, 6.1], [22.9, 3.2], [25.4, 24.7], [2.2, 21.6]]])
    found = PatchRenderer()(grey, torch.full((3, 8, 8), 0.6), torch.ones(1, 8, 8), turned, PLAIN, torch.tensor([0]))
    torch.testing.assert_close(found, grey, rtol=0, atol=1e-6)


def test_several_signs_and_patches() -> None:
    images, patches = colors(3, 3, 20, 30), colors(4, 3, 8, 8, seed=1)
    light = torch.tensor([[[0.5, 0.1]], [[1.0, 0.0]], [[0.2, 0.4]], [[0.9, 0.1]]])
    where = torch.tensor([2, 0, 0, 2])
    points = torch.cat((at(1, 1), at(2, 9), at(20, 3), at(15, 10)))
    found = PatchRenderer()(images, patches, torch.ones(1, 8, 8), points, light, where)
    wanted = images.clone()
    for k, (x, y) in enumerate(((1, 1), (2, 9), (20, 3), (15, 10))):
        wanted[where[k], :, y : y + 8, x : x + 8] = light[k, 0, 0] * patches[k] + light[k, 0, 1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    twice = PatchRenderer()(images, torch.ones(3, 8, 8), torch.ones(1, 8, 8), torch.cat((at(1, 1), at(1, 1))),
                            PLAIN.expand(2, 1, 2), torch.tensor([1, 1]))  # fmt: skip
    assert twice.max() <= 1
    jitter = torch.eye(3, dtype=torch.float64).expand(4, 3, 3).clone()
    jitter[:, 0, 2] = 2
    moved = PatchRenderer()(images, patches, torch.ones(1, 8, 8), points, light, where, jitter=jitter)
    torch.testing.assert_close(moved[0, :, 9:17, 4:10], found[0, :, 9:17, 2:8], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved[0, :, 9:17, 2:4], images[0, :, 9:17, 2:4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("geometry", ["perspective", "affine", "translate-scale"])
@pytest.mark.parametrize("method", ["percentile", "polynomial", "color-transfer", "percentile-hsv", "percentile-lab"])
def test_gradients_reach_the_patch(geometry, method) -> None:
    sign, area = polygon_sign("square", 8)
    scenes = generate_scenes(colors(2, 3, 16, 16).double(), sign, area, area, 0, seed=0)
    renderer = PatchRenderer(geometry=geometry, relight=method)
    light = renderer.fit(scenes.images, scenes.keypoints, scenes.obj_to_img, area, sign=sign)
    patch = (0.3 + 0.4 * colors(3, 8, 8, seed=1)).double().requires_grad_()
    shown = renderer(scenes.images, patch, area, scenes.keypoints, light, scenes.obj_to_img)
    shown.square().sum().backward()
    assert torch.isfinite(patch.grad).all()
    assert patch.grad.abs().sum() > 0
    assert shown.min() >= 0
    assert shown.max() <= 1


@pytest.mark.parametrize("source", list(SOURCES))
def test_sources_name_their_key_points(source: str) -> None:
    count = 3 if source.startswith("triangle") else 4
    points = corners((9, 9), count, source)
    matrix = PatchRenderer(source=source).matrix((9, 9), points[None] * 2 + 5)
    torch.testing.assert_close(move_points(matrix, corners((9, 9)))[0], corners((9, 9)) * 2 + 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_generated_light_is_found_again(shape) -> None:
    sign, area = polygon_sign(shape, 24)
    assert sign.shape == (3, 24, 24)
    points = 3 if shape == "triangle" else 4
    scenes = generate_scenes(colors(60, 3, 48, 48), sign, area, area, 1, seed=3, points=points, noise=0.02)
    assert scenes.images.min() >= 0
    assert scenes.images.max() <= 1
    assert (scenes.keypoints >= -1e-9).all()
    assert (scenes.keypoints <= 47 + 1e-9).all()
    light = scenes.renderer.fit(scenes.images, scenes.keypoints, scenes.obj_to_img, area)
    assert spearmanr(light[:, 0, 0], scenes.relight[:, 0, 0]).statistic > 0.95
    part = generate_scenes(colors(60, 3, 48, 48)[:7], sign, area, area, 1, seed=3, points=points, noise=0.02)
    assert part.images.equal(scenes.images[:7])
    assert scenes.targets()[4]["boxes"].equal(scenes.boxes[4:5])
    assert scenes.targets()[4]["labels"].tolist() == [1]


def test_selected_scenes_render_as_they_do_together() -> None:
    sign, area = polygon_sign("circle", 16)
    scenes = generate_scenes(colors(6, 3, 40, 40), sign, area, area, 0, seed=0)
    doubled = Scenes(
        scenes.images, torch.cat((scenes.keypoints, scenes.keypoints * 0.5)), scenes.relight.repeat(2, 1, 1),
        torch.arange(6).repeat(2), scenes.labels.repeat(2), area, area,
    )  # fmt: skip
    patch, rows = colors(3, 16, 16, seed=2), torch.tensor([4, 1])
    some = doubled.select(rows)
    assert len(some) == 2
    assert len(some.labels) == 4
    torch.testing.assert_close(some.render(patch), doubled.render(patch)[rows])
    for a, b in zip(some.targets(), [doubled.targets()[k] for k in (4, 1)], strict=True):
        assert a["boxes"].equal(b["boxes"])


def csv_of(folder: Path, **changes: str) -> Path:
    box = [[5, 3], [12, 3], [12, 10], [5, 10]]
    row = {"filename": "a.jpg", "object_id": "7", "final_shape": "octagon", "tgt_points": json.dumps(box)}
    row |= {"percentile_coeffs": "[[0.5, 0.25]]", "polynomial_coeffs": "[[1, 0], [1, 0], [1, 0]]"}
    row |= {"color_transfer_coeffs": "[[1, 0], [1, 0], [1, 0]]"}
    rows = [row, row | {"filename": "b.jpg"}, row | {"final_shape": "other", "percentile_coeffs": ""}, row | changes]
    text = "\n".join(",".join('"' + str(r[c]).replace('"', '""') + '"' for c in row) for r in rows)
    path = folder / "reap_annotations.csv"
    path.write_text(",".join(row) + "\n" + text + "\n")
    return path


def test_annotations_are_read(tmp_path: Path) -> None:
    images = {"a.jpg": colors(3, 20, 24), "b.jpg": colors(3, 20, 24, seed=1)}
    mask = torch.ones(1, 8, 8)
    scenes = load_reap(csv_of(tmp_path), images, "octagon", mask, mask, label=9)
    assert len(scenes) == 2
    assert scenes.obj_to_img.tolist() == [0, 1, 0]
    assert scenes.labels.tolist() == [9, 9, 9]
    assert scenes.relight[0].tolist() == [[0.5, 0.25]]
    assert scenes.boxes[0].tolist() == [5, 3, 12, 10]
    one = scenes.select(torch.tensor([1])).render(colors(3, 8, 8, seed=2))
    torch.testing.assert_close(one[0, :, 3:11, 5:13], 0.5 * colors(3, 8, 8, seed=2) + 0.25, rtol=0, atol=1e-5)
    small = load_reap(csv_of(tmp_path), images, "octagon", mask, mask, scale=(0.5, 2.0))
    assert small.keypoints[0, 2].tolist() == [6, 20]
    for method in ("none", "polynomial", "color-transfer"):
        renderer = PatchRenderer(relight=method)  # type: ignore[arg-type]
        assert load_reap(csv_of(tmp_path), images, "octagon", mask, mask, renderer=renderer).relight.shape[0] == 3


def test_bad_annotations(tmp_path: Path) -> None:
    images, mask = {"a.jpg": colors(3, 20, 24)}, torch.ones(1, 8, 8)
    bare = tmp_path / "bare.csv"
    bare.write_text("filename,final_shape\na.jpg,octagon\n")
    cases = [
        lambda: load_reap(tmp_path / "absent.csv", images, "octagon", mask, mask),
        lambda: load_reap(bare, images, "octagon", mask, mask),
        lambda: load_reap(csv_of(tmp_path), images, "circle", mask, mask),
        lambda: load_reap(csv_of(tmp_path), {"c.jpg": images["a.jpg"]}, "octagon", mask, mask),
        lambda: load_reap(csv_of(tmp_path), images | {"b.jpg": colors(3, 9, 9)}, "octagon", mask, mask),
        lambda: load_reap(csv_of(tmp_path, tgt_points="[[1, 2]]"), images, "octagon", mask, mask),
        lambda: load_reap(csv_of(tmp_path, tgt_points="left"), images, "octagon", mask, mask),
        lambda: load_reap(csv_of(tmp_path, percentile_coeffs=""), images, "octagon", mask, mask),
        lambda: load_reap(csv_of(tmp_path, percentile_coeffs="[[1], [2]]"), images, "octagon", mask, mask),
        lambda: load_reap(
            csv_of(tmp_path), images, "octagon", mask, mask, renderer=PatchRenderer(relight="percentile-hsv")
        ),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)


def test_bad_input() -> None:
    images, patch, mask, where = colors(2, 3, 20, 20), colors(3, 8, 8), torch.ones(1, 8, 8), torch.tensor([0])
    draw = PatchRenderer()
    sign, area = polygon_sign("square", 8)
    scenes = generate_scenes(images, sign, area, area, 0, seed=0)
    cases = [
        lambda: draw(images + 1, patch, mask, at(1, 1), PLAIN, where),
        lambda: draw(images[:, :1], patch, mask, at(1, 1), PLAIN, where),
        lambda: draw(images, patch[:, 1:], mask, at(1, 1), PLAIN, where),
        lambda: draw(images, patch + 1, mask, at(1, 1), PLAIN, where),
        lambda: draw(images, colors(2, 3, 8, 8), mask, at(1, 1), PLAIN, where),
        lambda: draw(images, patch, mask[0], at(1, 1), PLAIN, where),
        lambda: draw(images, patch, mask, at(1, 1)[:, :2], PLAIN, where),
        lambda: draw(images, patch, mask, at(1, 1), PLAIN.expand(2, 1, 2), where),
        lambda: draw(images, patch, mask, at(1, 1), PLAIN, torch.tensor([2])),
        lambda: draw(images, patch, mask, at(1, 1), PLAIN, torch.tensor([0, 1])),
        lambda: draw(images, patch, mask, at(1, 1), PLAIN, where, obj_mask=mask[:, 1:]),
        lambda: draw.fit(images, at(50, 50), where, mask),
        lambda: PatchRenderer(geometry="rigid"),  # type: ignore[arg-type]
        lambda: PatchRenderer(relight="kmean"),  # type: ignore[arg-type]
        lambda: PatchRenderer(interp="cubic"),  # type: ignore[arg-type]
        lambda: PatchRenderer(q=0.7),
        lambda: PatchRenderer(source="star"),
        lambda: polygon_sign("star", 8),  # type: ignore[arg-type]
        lambda: replace(scenes, labels=scenes.labels[:1]),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
