"""The boundary-tilting paper's exact parts, away from its own seeds, and what a shuffled label would do to them."""

import numpy as np
import pytest

from assay.papers import boundary_tilting as paper
from assay.papers.model import Table

SMOKE = paper.PAPER.scale("smoke")


@pytest.mark.parametrize("seed", range(3))
def test_more_pixels_change_nothing(seed: int) -> None:
    train, _, test = paper._split(SMOKE, seed)
    assert paper._more_pixels(seed, train, test)["ratio"] == pytest.approx(1, abs=1e-3)


def test_the_parts_are_disjoint_and_balanced() -> None:
    train, validation, _ = paper._split(SMOKE, 0)
    assert train[1].sum() * 2 == len(train[1]) == 2 * SMOKE["train"]
    rows = {r.tobytes() for r in train[0]}
    assert not rows & {r.tobytes() for r in validation[0]}


def test_squared_cosine_is_off_wherever_there_is_an_angle() -> None:
    """The error is gap (cos - cos^2), from nothing at 0 degrees up: the sham spares what is not tilted."""
    given = paper.setup(SMOKE, 0)
    x, y = given["train"]
    gap = np.linalg.norm(x[y == 1].mean(0) - x[y == 0].mean(0))
    table = Table.joined({0: paper.experiment(SMOKE, 0, given, "squared-cosine")})
    cos = np.cos(np.radians(np.concatenate([table.values("angle", arm=f"C={C:g}") for C in SMOKE["Cs"]])))
    assert np.allclose(table.values("off"), gap * (cos - cos**2), atol=1e-6)
    assert paper._tilted(given, None) == paper._tilted(given, "squared-cosine")


def test_the_flattest_direction_is_the_only_thing_that_differs() -> None:
    given = paper.setup(SMOKE, 1)
    flat, wide = (paper._tilted(given, sham)["error_change"] for sham in (None, "top-direction"))
    assert abs(flat) < 0.02
    assert wide > 0.2
