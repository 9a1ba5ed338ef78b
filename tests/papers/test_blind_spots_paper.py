"""What is special to the blind-spots paper: its reference, what its shams change, and its arm for large scale."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.papers import blind_spots as paper
from assay.papers.model import Scale


@pytest.mark.parametrize("seed", range(8))
def test_the_reference_tells_the_method_from_both_shams(seed: int) -> None:
    assert paper.against_reference(seed, None) < 1e-6
    assert paper.against_reference(seed, "no-rejection") > 1e-3
    assert paper.against_reference(seed, "no-projection") > 1e-3


def test_the_reference_descends_along_its_own_finite_differences() -> None:
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(4, 3)), rng.normal(size=(3, 4))
    x, method = np.full(3, 0.5), paper._Shammed(steps=1, step=1e-9, adv_step=1e-3, conf_drop=1.0, jitter=0.0)
    y = int((last @ np.tanh(first @ x)).argmax())

    def loss(point: np.ndarray) -> float:
        logits = last @ np.tanh(first @ point)
        return float(np.log(np.exp(logits).sum()) - logits[y])

    moved, taken = paper.reference(first, last, x, y, x, method)
    slope = [(loss(x + 1e-6 * e) - loss(x - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
    assert taken == [True]
    np.testing.assert_allclose((x - moved) / (method.adv_step / 2), slope, atol=1e-6)


def test_shams_differ_from_the_method_in_one_step_each() -> None:
    delta, grad = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    found = {s: paper._Shammed(sham=s).across(delta, grad).tolist() for s in (None, "no-projection", "no-rejection")}
    assert found == {None: [[0, 1]], "no-projection": [[1, 1]], "no-rejection": [[0, 1]]}
    above = torch.tensor([True, False])
    taken = {s: paper._Shammed(sham=s).accepts(above).tolist() for s in (None, "no-projection", "no-rejection")}
    assert taken == {None: [True, False], "no-projection": [True, False], "no-rejection": [True, True]}
    assert replace(paper._Shammed(), steps=1).sham is None


def test_the_arm_of_robust_training_runs() -> None:
    scale = Scale("gpu", 1, {**paper.PAPER.scale("smoke").sizes, "steps": 4, "robust": 10})
    given = paper.setup(scale, 0)
    table = paper.experiment(scale, 0, given, None)
    assert table.where(arm="robust").rows
    texts = [c.text for c in paper.claims(table)]
    assert any("adversarially trained" in t for t in texts)
    assert math.isfinite(table.values("triangle@0.2", arm="robust")[0])
