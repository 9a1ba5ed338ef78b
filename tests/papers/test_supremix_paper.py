"""The experiment of the gpu scale of supremix, on few small images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.data import Data
from assay.nets import ResNet
from assay.papers import supremix as paper
from assay.papers.model import Scale


def test_the_experiment_of_the_gpu_scale_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(paper, "_images", lambda source, part: Data(x, torch.full((40,), 7), tuple("0123456789")))
    few = {"train": 64, "test": 60, "side": 12, "width": 2, "epochs": 2}
    scale = Scale("gpu", 10, {**paper.PAPER.scale("gpu").sizes, **few})
    given = paper.setup(scale, 0)
    assert isinstance(given["start"], ResNet)
    claims = paper.claims(paper.experiment(scale, 0, given, None))
    assert all(np.isfinite(c.observed).all() for c in claims)
    assert {c.verdict for c in claims if c.rule == "exact"} == {"holds"}
