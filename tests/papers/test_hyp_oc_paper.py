"""The exact part of the Hyp-OC paper, and its recaptures."""

import pytest
import torch

from assay.data import load_data
from assay.papers import hyp_oc as paper


@pytest.mark.parametrize("seed", range(4))
def test_identities_hold_and_need_the_curvature(seed: int) -> None:
    real, sham = paper.exact(seed, None), paper.exact(seed, "missing-curvature")
    limits = {"inverse": 1e-9, "distance": 1e-7, "origin": 1e-9, "flat": 1e-4}
    assert all(real[k] <= limit for k, limit in limits.items())
    assert sham["inverse"] == real["inverse"]
    assert all(sham[k] > 0.1 for k in ("distance", "origin", "flat"))


@pytest.mark.parametrize("kind", paper.SPOOFS)
def test_recaptures_change_every_image_and_stay_in_bounds(kind: str) -> None:
    x = load_data("digits:test").x[:30]
    found = paper.spoofed(kind, x, 0)
    assert found.shape == x.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float((found - x).abs().mean((1, 2, 3)).min()) > 0.02
    assert torch.equal(found, paper.spoofed(kind, x, 0))
