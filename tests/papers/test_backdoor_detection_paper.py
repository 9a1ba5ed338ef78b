"""The exact part of the backdoor detection paper, and what its shams change."""

import numpy as np
import pytest
import torch

from assay.detect import ConformalDetector, ShrunkMahalanobis
from assay.nets import SmallCNN
from assay.papers import backdoor_detection as paper
from assay.runtime.random import numpy_rng, seeded


def _latents(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = numpy_rng(seed, "latents")
    predicted = torch.arange(600) % 10
    f = torch.from_numpy(rng.normal(size=(600, 16)) @ rng.normal(size=(16, 16)))
    return f + predicted[:, None], predicted


@pytest.mark.parametrize("seed", range(3))
def test_exact_checks_hold_and_need_the_slack(seed: int) -> None:
    real, sham = (paper.exact(_latents(seed), seed, sham=s) for s in (None, "missing-slack"))
    assert real["level"] == 0
    assert real["promise"] >= 0.95
    assert max(real["pvalue"], real["distance"]) < 1e-9
    assert sham["level"] > 0
    assert sham["promise"] < 0.6
    assert {k: sham[k] for k in ("pvalue", "distance")} == {k: real[k] for k in ("pvalue", "distance")}


def test_scores_are_those_of_the_public_detector_on_halves() -> None:
    _, data = paper._images("digits")
    with seeded(0, "init"):
        model = SmallCNN()
    val, rest = data[:200], data[200:]
    first, second = val[:100], val[100:]
    fitted = ConformalDetector(alpha=0.1, method="marginal").fit(model, first, second)
    parts = [paper.latents(model, part.x, "body.6") for part in (val, rest)]
    held, fresh = paper._scored(
        ShrunkMahalanobis(), *[(f, out.argmax(1)) for f, out in parts[:1]], [(parts[1][0], parts[1][1].argmax(1))], None
    )
    np.testing.assert_allclose(held, fitted.reference_, rtol=1e-8)
    np.testing.assert_allclose(fresh, fitted.score(rest.x), rtol=1e-8)


def test_reuse_fits_and_reads_off_the_same_samples() -> None:
    f, predicted = _latents(7)
    val, rest = (f[:80], predicted[:80]), (f[80:], predicted[80:])
    honest, reused = (paper._scored(paper.OAS_SCM, val, [rest], s) for s in (None, "reused-validation"))
    assert (len(honest[0]), len(reused[0])) == (40, 80)
    assert abs(np.median(honest[0]) / np.median(honest[1]) - 1) < 0.35
    assert np.median(reused[0]) < 0.85 * np.median(reused[1])


def test_gaussian_powers_meet_their_closed_forms() -> None:
    found = paper.gaussian(40_000, 3)
    assert max(found[k] for k in ("lr_error", "lr_power_error", "maha_power_error")) < 0.01
    assert found["lr"] > found["maha"] + 0.05
    assert found["maha"] > found["euclid"] + 0.05
