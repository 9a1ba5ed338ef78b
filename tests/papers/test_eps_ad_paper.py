"""The exact part of the EPS-AD paper."""

import numpy as np
import pytest
import torch

from assay.generate import VPSDE
from assay.papers import eps_ad as paper


@pytest.mark.parametrize("seed", range(3))
def test_theory_holds_and_each_sham_breaks_its_part(seed: int) -> None:
    real, one, scale = (paper.exact_score(1000, 6, seed, sham=s) for s in (None, "one-noise", "missing-scale"))
    assert max(r["mean"] for r in real) < 5.5
    assert max(abs(r["variance"] - 1) for r in real) < 0.1
    assert max(r["bent"] for r in real) < 1e-9
    assert max(r["variance"] for r in one) > 10
    assert max(r["mean"] for r in one) < 5.5  # the mean survives
    assert max(r["bent"] for r in one) < 1e-9
    assert max(r["mean"] for r in scale) > 50
    assert max(r["bent"] for r in scale) > 1


def test_the_mix_written_out_is_that_of_the_schedule() -> None:
    t = np.linspace(1e-3, 1, 50)
    for found, expected in zip(paper._mix(t), (VPSDE().alpha, VPSDE().sigma), strict=True):
        np.testing.assert_allclose(found, expected(torch.from_numpy(t)), rtol=1e-10)
