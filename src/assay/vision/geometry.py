"""Plane geometry of signs: matrices from key points, and warping. Pixel centres have integer coordinates (x, y)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError, unknown

Geometry = Literal["perspective", "affine", "translate-scale"]
GEOMETRIES: tuple[str, ...] = get_args(Geometry)


SOURCES = {
    "triangle-inverted": ((0.0, 0.0), (1.0, 0.0), (0.5, 1.0)),
    "diamond": ((0.0, 0.5), (0.5, 0.0), (1.0, 0.5), (0.5, 1.0)),
    "pentagon": ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)),
    "octagon": ((1 - 0.5**0.5, 0.0), (1.0, 1 - 0.5**0.5), (0.5**0.5, 1.0), (0.0, 0.5**0.5)),
}


def corners(size: tuple[int, int], count: int = 4, source: str = "corners") -> Float[Tensor, "k 2"]:
    """The key points of a canonical object of ``size`` (h, w), clockwise: its four corners from the top left, or the
    top, lower right and lower left of a triangle. ``source`` names other objects: "triangle-inverted" from the top
    left, "diamond" from the left, "pentagon" (shoulders half-way down, then feet), and "octagon", every second vertex
    from the left one of its top. InputError for a ``count`` that an object does not have."""
    h, w = (float(s - 1) for s in size)
    if source != "corners" and source not in SOURCES:
        raise unknown("key points of", source, ("corners", *SOURCES))
    if source in SOURCES and len(SOURCES[source]) == count:
        return torch.tensor(SOURCES[source], dtype=torch.float64) * torch.tensor((w, h), dtype=torch.float64)
    known = {4: ((0, 0), (w, 0), (w, h), (0, h)), 3: ((w / 2, 0), (w, h), (0, h))}
    if count not in known or source in SOURCES:
        raise InputError(f"key points: {count} of an object, {source!r}; expected 3 of triangles and else 4")
    return torch.tensor(known[count], dtype=torch.float64)


def _box(points: Float[Tensor, "m k 2"]) -> Float[Tensor, "m 4 2"]:
    low, high = points.amin(1), points.amax(1)
    return torch.stack((low, torch.stack((high[:, 0], low[:, 1]), 1), high, torch.stack((low[:, 0], high[:, 1]), 1)), 1)


def _check_shape(where: str, points: Float[Tensor, "m k 2"]) -> None:
    """Three points that are not on a line, or four corners, in order, of a convex quadrilateral."""
    edges = points.roll(-1, 1) - points
    after = edges.roll(-1, 1)
    turn = edges[..., 0] * after[..., 1] - edges[..., 1] * after[..., 0]
    extent = (points.amax(1) - points.amin(1)).amax(1, keepdim=True)
    flat = turn.abs() <= 1e-9 * extent.square()
    if flat.any():
        raise InputError(
            f"{where}: key points of object {int(flat.any(1).nonzero()[0])} are collinear; expected corners"
        )
    if ((turn > 0).any(1) & (turn < 0).any(1)).any():
        raise InputError(f"{where}: key points are no convex quadrilateral in order; expected clockwise corners")


def get_transform_matrix(
    src: Float[Tensor, "k 2"], tgt: Float[Tensor, "m k 2"], mode: Geometry = "perspective"
) -> Float[Tensor, "m 3 3"]:
    """Matrices H, float64, with H (x, y, 1) ~ (x', y', 1) from ``src`` to each object's ``tgt`` (Hingun et al., 2022,
    arXiv:2212.05680).

    "perspective": the homography of four points, by its eight linear equations; three points give an affine map.
    "affine": the affine map of the first three. "translate-scale": that of the bounding boxes. src may be (m, k, 2).
    Raises InputError for other numbers of points, collinear ones, and quadrilaterals that are not convex.
    """
    where = "get_transform_matrix"
    if mode not in GEOMETRIES:
        raise unknown("geometry", str(mode), GEOMETRIES)
    if tgt.dim() != 3 or tgt.shape[2] != 2 or tgt.shape[1] not in (3, 4) or src.shape[-2:] != tgt.shape[1:]:
        shapes = f"{tuple(src.shape)} and {tuple(tgt.shape)}"
        raise InputError(f"{where}: key points of shapes {shapes}; expected (k, 2) and (m, k, 2) with k = 3 or 4")
    source, target = src.to(tgt.device, torch.float64).expand(tgt.shape), tgt.double()
    if not (torch.isfinite(source).all() and torch.isfinite(target).all()):
        raise InputError(f"{where}: key points hold NaN or infinity; expected finite coordinates")
    if mode == "translate-scale":
        source, target = _box(source), _box(target)
    _check_shape(where, source)
    _check_shape(where, target)
    if source.shape[1] == 3 or mode == "affine":
        return _affine(source[:, :3], target[:, :3])
    return _homography(source, target)


def _affine(src: Float[Tensor, "m 3 2"], tgt: Float[Tensor, "m 3 2"]) -> Float[Tensor, "m 3 3"]:
    rows = torch.linalg.solve(torch.cat((src, torch.ones_like(src[..., :1])), 2), tgt).mT
    return torch.cat((rows, rows.new_tensor((0, 0, 1)).expand(len(src), 1, 3)), 1)


def _homography(src: Float[Tensor, "m 4 2"], tgt: Float[Tensor, "m 4 2"]) -> Float[Tensor, "m 3 3"]:
    """h11 x + h12 y + h13 - u (h31 x + h32 y) = u, and likewise for v, with h33 = 1."""
    one, none = torch.ones_like(src[..., :1]), torch.zeros_like(src)
    point = torch.cat((src, one), 2)
    blank = torch.cat((none, none[..., :1]), 2)
    upper = torch.cat((point, blank, -tgt[..., :1] * src), 2)
    lower = torch.cat((blank, point, -tgt[..., 1:] * src), 2)
    h = torch.linalg.solve(torch.cat((upper, lower), 1), torch.cat((tgt[..., 0], tgt[..., 1]), 1))
    return torch.cat((h, torch.ones_like(h[:, :1])), 1).view(-1, 3, 3)


def move_points(matrix: Float[Tensor, "m 3 3"], points: Float[Tensor, "k 2"]) -> Float[Tensor, "m k 2"]:
    """Where each matrix takes ``points`` (k, 2) or (m, k, 2)."""
    points = points.to(matrix)
    moved = torch.cat((points, torch.ones_like(points[..., :1])), -1) @ matrix.mT
    return moved[..., :2] / moved[..., 2:]


def warp(
    x: Float[Tensor, "m c h w"],
    matrix: Float[Tensor, "m 3 3"],
    size: tuple[int, int],
    interp: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "m c h2 w2"]:
    """``x`` moved by ``matrix`` into frames of ``size`` (h2, w2), zero where nothing is; differentiable in ``x``.

    Every pixel of the new frame is looked up at the inverse of the matrix. What lies behind the viewer of a homography
    is zero too.
    """
    h, w = x.shape[2:]
    rows, columns = (torch.arange(n, dtype=matrix.dtype, device=matrix.device) for n in size)
    y, u = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack((u, y, torch.ones_like(u)), -1).view(1, -1, 3)
    middle = matrix.new_tensor(((w - 1) / 2, (h - 1) / 2, 1.0))
    facing = torch.sign(matrix @ middle)[:, 2, None, None]
    found = pixels @ torch.linalg.inv(matrix).mT * facing
    depth = found[..., 2:]
    place = torch.where(depth > 1e-12, found[..., :2] / depth.clamp_min(1e-12), -10.0 * max(h, w))
    scale = matrix.new_tensor((max(w - 1, 1), max(h - 1, 1)))
    grid = (2 * place / scale - 1).clamp(-1e4, 1e4).to(x.dtype).view(len(x), *size, 2)
    return F.grid_sample(x, grid, mode=interp, padding_mode="zeros", align_corners=True)
