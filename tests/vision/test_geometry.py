"""Matrices from key points, warping, patch masks, and key points from masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.runtime.errors import InputError
from assay.vision import corners, get_transform_matrix, keypoints_from_mask, move_points, patch_mask, warp


def quads(count: int, seed: int, points: int = 4) -> Tensor:
    """Convex quadrilaterals, or triangles: corners of a frame, each moved by up to a fifth of it."""
    g = torch.Generator().manual_seed(seed)
    base = corners((11, 11), points)[None] + 4 * torch.rand(count, points, 2, generator=g, dtype=torch.float64) - 2
    size, place = (torch.rand(count, 1, 2, generator=g, dtype=torch.float64) for _ in range(2))
    return base * (0.5 + 4 * size) + 500 * place


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([3, 4]))
def test_key_points_are_met(seed: int, points: int) -> None:
    target = quads(5, seed, points)
    matrix = get_transform_matrix(corners((64, 48), points), target)
    assert (move_points(matrix, corners((64, 48), points)) - target).abs().max() < 1e-8
    back = get_transform_matrix(target, corners((64, 48), points).expand(5, -1, -1))
    product = matrix @ back
    torch.testing.assert_close(product / product[:, 2:, 2:], torch.eye(3).double().expand(5, 3, 3), rtol=0, atol=1e-6)


def test_modes() -> None:
    target = quads(3, 0)
    source = corners((20, 30))
    affine = get_transform_matrix(source, target, "affine")
    assert (move_points(affine, source)[:, :3] - target[:, :3]).abs().max() < 1e-9
    assert affine[:, 2].equal(torch.tensor([0.0, 0, 1]).double().expand(3, 3))
    box = move_points(get_transform_matrix(source, target, "translate-scale"), source)
    torch.testing.assert_close(box.amin(1), target.amin(1))
    torch.testing.assert_close(box.amax(1), target.amax(1))
    assert (box[:, 0, 1] == box[:, 1, 1]).all()
    triangle = quads(3, 1, 3)
    boxed = move_points(get_transform_matrix(corners((20, 30), 3), triangle, "translate-scale"), corners((20, 30), 3))
    torch.testing.assert_close(boxed.amax(1), triangle.amax(1))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0, 0], [1, 1]], "expected"),
        ([[0, 0], [1, 1], [2, 2]], "collinear"),
        ([[0, 0], [4, 0], [4, 4], [4, 2]], "collinear"),
        ([[0, 0], [4, 0], [0, 4], [4, 4]], "convex"),
        ([[0, 0], [4, 0], [1, 1], [0, 4]], "convex"),
        ([[0, 0], [4, 0], [4, 4], [0, float("nan")]], "finite"),
    ],
)
def test_bad_points(points: list[list[float]], message: str) -> None:
    source = corners((8, 8), min(max(len(points), 3), 4))
    with pytest.raises(InputError, match=message):
        get_transform_matrix(source, torch.tensor([points], dtype=torch.float64))


def test_bad_names() -> None:
    for case in (
        lambda: get_transform_matrix(corners((8, 8)), quads(1, 0), "rigid"),  # type: ignore[arg-type]
        lambda: corners((8, 8), 5),
        lambda: corners((8, 8), 4, "hexagon"),
        lambda: corners((8, 8), 4, "triangle-inverted"),
    ):
        with pytest.raises(InputError):
            case()


def test_warp_moves_pixels_and_copies_at_rest() -> None:
    x = torch.rand(2, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    still = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    torch.testing.assert_close(warp(x, still, (7, 9)), x, rtol=0, atol=1e-12)
    shift = still.clone()
    shift[:, 0, 2], shift[:, 1, 2] = 3, 2
    moved = warp(x, shift, (12, 14))
    torch.testing.assert_close(moved[:, :, 2:9, 3:12], x, rtol=0, atol=1e-12)
    assert moved[:, :, :2].abs().max() < 1e-9
    assert moved.sum().item() == pytest.approx(x.sum().item())
    torch.testing.assert_close(warp(x, shift * 5, (12, 14)), moved, rtol=0, atol=1e-12)
    nearest = warp(x, shift, (12, 14), "nearest")
    torch.testing.assert_close(nearest[:, :, 2:9, 3:12], x)


def test_what_lies_behind_the_viewer_is_left_out() -> None:
    matrix = torch.eye(3, dtype=torch.float64)[None].clone()
    matrix[0, 2, 0] = -0.2  # the horizon x = 5 of the source goes to infinity
    out = warp(torch.ones(1, 1, 4, 4), matrix, (40, 40))
    inverse = torch.linalg.inv(matrix[0])
    for y, x in out[0, 0].nonzero().tolist():
        assert float((inverse @ torch.tensor([x, y, 1.0]).double())[2]) > 0


def test_mask_of_the_dossier_sizes() -> None:
    side = 36 * 25.4
    rows = patch_mask("1_10x10_bottom", (64, 64), (side, side))[0].nonzero()
    assert rows.amin(0).tolist() == [46, 23]
    assert rows.amax(0).tolist() == [63, 40]
    assert len(rows) == 18 * 18
    two = patch_mask("2_10x20_bottom", (64, 64), (side, side))
    assert two.sum() == 2 * 18 * 36
    assert two.equal(two.flip(1))
    assert patch_mask("1_10x10_top", (64, 64), (side, side)).equal(
        patch_mask("1_10x10_bottom", (64, 64), (side, side)).flip(1)
    )
    middle = patch_mask("1_10x10_middle", (64, 64), (side, side))
    assert middle.equal(middle.flip(1))
    assert patch_mask("1_10x10_0", (64, 64), (side, side)).equal(middle)
    lower = patch_mask("1_10x10_142.875", (64, 64), (side, side))  # 10 pixels of 914.4 / 64 mm
    assert lower.equal(middle.roll(10, 1))
    assert patch_mask("1_5x5_middle", (9, 9), (9 * 25.4, 9 * 25.4)).sum() == 25  # an odd size keeps its pixel


@pytest.mark.parametrize(
    ("spec", "px", "mm"),
    [
        ("10x10_bottom", (64, 64), (900, 900)),
        ("3_10x10_bottom", (64, 64), (900, 900)),
        ("1_10x10_left", (64, 64), (900, 900)),
        ("1_10x10_bottom", (64, 32), (900, 900)),
        ("1_40x10_bottom", (64, 64), (900, 900)),
        ("1_10x10_500", (64, 64), (900, 900)),
        ("1_0x10_bottom", (64, 64), (900, 900)),
    ],
)
def test_bad_masks(spec: str, px: tuple[int, int], mm: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="patch") as caught:
        patch_mask(spec, px, mm)
    assert "\n" not in str(caught.value)


def drawn(points: np.ndarray, side: int = 90) -> np.ndarray:
    """The mask of a convex polygon, vertices clockwise as seen."""
    y, x = np.mgrid[:side, :side].astype(float)
    inside = np.ones((side, side), bool)
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        inside &= (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) >= 0
    return inside


SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
AT = 1 - 0.5**0.5
POLYGONS = {
    "rectangle": SQUARE,
    "diamond": np.array([[0, 0.5], [0.5, 0], [1, 0.5], [0.5, 1]]),
    "triangle": np.array([[0.5, 0], [1, 1], [0, 1]]),
    "triangle-inverted": np.array([[0, 0], [1, 0], [0.5, 1]]),
    "pentagon": np.array([[0, 0.5], [0.5, 0], [1, 0.5], [1, 1], [0, 1]]),
    "octagon": np.array([[AT, 0], [1 - AT, 0], [1, AT], [1, 1 - AT], [1 - AT, 1], [AT, 1], [0, 1 - AT], [0, AT]]),
}


@pytest.mark.parametrize("shape", list(POLYGONS))
@pytest.mark.parametrize("turn", [-6.0, 0.0, 6.0])
def test_polygons_are_recognised_with_the_points_that_the_renderer_expects(shape: str, turn: float) -> None:
    angle = np.radians(turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    place = lambda unit: (unit - 0.5) @ rotation.T * 60 + 44  # noqa: E731
    found, name = keypoints_from_mask(drawn(place(POLYGONS[shape])))
    assert name == shape
    points = 3 if shape.startswith("triangle") else 4
    source = "corners" if shape in ("rectangle", "triangle") else shape
    expected = place(corners((2, 2), points, source).numpy())
    assert np.abs(found - expected).max() < 2.5


def test_a_circle_has_the_box_of_its_ellipse() -> None:
    y, x = np.mgrid[:90, :90].astype(float)
    found, name = keypoints_from_mask((x - 40) ** 2 + (y - 45) ** 2 <= 30**2)
    assert name == "circle"
    np.testing.assert_allclose(found, [[10, 15], [70, 15], [70, 75], [10, 75]], atol=0.5)
    wide, name = keypoints_from_mask((x - 40) ** 2 / 900 + (y - 45) ** 2 / 225 <= 1)
    assert name == "circle"
    np.testing.assert_allclose(wide, [[10, 30], [70, 30], [70, 60], [10, 60]], atol=0.5)


def test_bad_sign_masks() -> None:
    line = np.zeros((9, 9), bool)
    line[4] = True
    for mask in (np.zeros((9, 9), bool), line, np.ones((3, 9, 9), bool), np.ones((9, 9))):
        with pytest.raises(InputError, match="keypoints_from_mask"):
            keypoints_from_mask(mask)
