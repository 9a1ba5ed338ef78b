"""The experiment of the gpu scale of smooth-expert-distillation, on few small images."""

from __future__ import annotations

import pytest
import torch

from assay.data import Data
from assay.papers import smooth_expert_distillation as paper
from assay.papers.model import Scale


def _colours(n: int) -> Data:
    y = torch.arange(n) % 10
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)) * 0.5 + y[:, None, None, None] / 20
    return Data(x, y, tuple("abcdefghij"), name="cifar10")


def test_the_experiment_of_the_gpu_scale_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_images", lambda source: (_colours(200), _colours(50)))
    few = {"train": 200, "test": 50, "width": 4, "experts": 2, "epochs": 21, "iterations": 2, "steps": 4}
    scale = Scale("gpu", 5, {**paper.PAPER.scale("gpu").sizes, **few})
    table = paper.experiment(scale, 0, paper.setup(scale, 0), "wrong-target")
    claims = {c.text: c for c in paper.claims(table)}
    (against_mtt,) = [c for text, c in claims.items() if "MTT" in text]
    assert against_mtt.at_least == 0.01
    assert all(torch.isfinite(torch.as_tensor(c.observed)).all() for c in claims.values())
    net = paper._net(scale, 0)
    assert [m.out_channels for m in net.modules() if isinstance(m, torch.nn.Conv2d)] == [4, 4, 4]
    assert not list(net.buffers())
