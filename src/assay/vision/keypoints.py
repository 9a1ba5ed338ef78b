"""Key points of a sign from its segmentation mask."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

from assay.runtime.errors import InputError

TOLERANCE = 0.04  # of the perimeter
COVER = 0.94  # of the hull's area: eight vertices of an ellipse cover 0.9 of it
BY_VERTICES = {3: "triangle", 4: "rectangle", 5: "pentagon", 8: "octagon"}
CORNERS = {"pentagon": [0, 2, 3, 4], "octagon": [1, 3, 5, 7]}


def keypoints_from_mask(mask: Bool[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "k 2"], str]:
    """Key points (k, 2) as x, y, clockwise, k = 3 for triangles and else 4, and the shape: "triangle",
    "triangle-inverted", "rectangle", "diamond", "pentagon", "octagon" or "circle" (Hingun et al., 2022,
    arXiv:2212.05680).

    The convex hull of the mask is thinned to a polygon within 4% of its perimeter, whose vertices tell the shape. All
    other counts are circles, and polygons that leave out more than 6% of the hull, which tells circles from octagons
    (the authors know the class of a sign); their points are the corners of the box around the ellipse with the mask's
    second moments, upright where its axes differ by less than 10% of their mean. The points are those of ``corners``
    with the shape as ``source`` ("corners" for triangles, rectangles and circles). Raises InputError for a mask that is
    not two-dimensional or has no area.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise InputError(f"keypoints_from_mask: mask is {mask.dtype} {mask.shape}; expected bool (h, w)")
    points = np.argwhere(mask)[:, ::-1].astype(float)
    try:
        hull = points[ConvexHull(points).vertices] if len(points) > 2 else points[:0]
    except QhullError:
        hull = points[:0]
    if not len(hull):
        raise InputError(f"keypoints_from_mask: {len(points)} pixels without an area; expected a sign's mask")
    perimeter = np.linalg.norm(np.roll(hull, -1, 0) - hull, axis=1).sum()
    vertices = clockwise(thinned(hull, TOLERANCE * perimeter))
    covers = _area(vertices) >= COVER * _area(hull)
    shape = BY_VERTICES.get(len(vertices), "circle") if covers else "circle"
    if shape == "circle":
        return clockwise(_ellipse_box(points)), shape
    if shape == "triangle" and vertices[:, 1].mean() < (vertices[:, 1].min() + vertices[:, 1].max()) / 2:
        shape = "triangle-inverted"
    if shape == "rectangle" and _stands_on_a_corner(vertices):
        shape = "diamond"
    return vertices[CORNERS.get(shape, list(range(len(vertices))))], shape


def thinned(polygon: Float[np.ndarray, "n 2"], tolerance: float) -> Float[np.ndarray, "k 2"]:
    """A closed convex polygon with fewer vertices, no dropped one farther than ``tolerance`` from it (Douglas and
    Peucker, 1973): split at the two vertices that are farthest apart, and then wherever one is too far."""
    apart = cdist(polygon, polygon)
    first, far = np.unravel_index(apart.argmax(), apart.shape)
    ring = np.roll(polygon, -int(first), 0)
    middle = int(far - first) % len(polygon)
    closed = np.concatenate((ring, ring[:1]))
    return ring[_split(closed, 0, middle, tolerance) + _split(closed, middle, len(ring), tolerance)]


def _area(polygon: Float[np.ndarray, "k 2"]) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _split(ring: np.ndarray, first: int, last: int, tolerance: float) -> list[int]:
    """The vertices kept from ``first`` up to, without, ``last``."""
    inner = range(first + 1, last)
    off = [_distance(ring[k], ring[first], ring[last]) for k in inner]
    if not off or max(off) <= tolerance:
        return [first]
    middle = first + 1 + int(np.argmax(off))
    return _split(ring, first, middle, tolerance) + _split(ring, middle, last, tolerance)


def _distance(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """From a point to the line through a and b."""
    along, to = b - a, point - a
    length = float(np.hypot(*along))
    return float(np.hypot(*to)) if length == 0 else abs(float(along[0] * to[1] - along[1] * to[0])) / length


def _stands_on_a_corner(vertices: Float[np.ndarray, "4 2"]) -> bool:
    """Whether the second vertex from the left is nearer to the middle than to the leftmost one."""
    x = np.sort(vertices[:, 0])
    return bool(x[1] - x[0] > (x[-1] - x[0]) / 4)


def clockwise(vertices: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 2"]:
    """Vertices by their angle around the mean, as seen with y down, from the upper of the two leftmost; of four that
    stand on a corner from the leftmost."""
    offset = vertices - vertices.mean(0)
    turned = vertices[np.argsort(np.arctan2(offset[:, 1], offset[:, 0]), kind="stable")]
    left = np.argsort(turned[:, 0], kind="stable")[:2]
    diamond = len(vertices) == 4 and _stands_on_a_corner(vertices)
    first = left[0] if diamond else left[turned[left, 1].argmin()]
    return np.roll(turned, -int(first), 0)


def _ellipse_box(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "4 2"]:
    """Corners of the box around the ellipse with the same mean and covariance as the pixels."""
    middle, covariance = points.mean(0), np.cov(points.T, bias=True)
    variances, axes = np.linalg.eigh(covariance)
    half = 2 * np.sqrt(variances)
    if abs(half[0] - half.mean()) / half.mean() < 0.1:
        half, axes = 2 * np.sqrt(np.diag(covariance)), np.eye(2)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return middle + (signs * half) @ axes.T
