"""What the checks of the RAW paper find where the answer is known, and that each can fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from assay.data import Data
from assay.data.isp import SimpleISP, UnprocessISP
from assay.defenses import LearnedISP, RawDefenseMap, RGBToRawNet
from assay.papers import raw_defense as paper
from assay.runtime.random import seeded


class Camera(RGBToRawNet):
    """F that captures what it is shown: the noise goes through as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return UnprocessISP().capture(x.clamp(0, 1))


class Grey(RGBToRawNet):
    """F that sees nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 4, *x.shape[2:]), 0.2)


def images() -> Data:
    x = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Data(x, torch.arange(40) % 2, ("a", "b"))


def test_the_mechanism_of_a_camera_and_of_a_blind_network() -> None:
    found = paper._mechanism(Camera(4), images(), 0)
    assert found["ratio"] == pytest.approx(1)
    assert found["passed"] == pytest.approx(1)
    assert found["calm"] == pytest.approx(0, abs=1e-9)
    blind = paper._mechanism(Grey(4), images(), 0)
    assert blind["passed"] == 0
    assert blind["ratio"] == pytest.approx(blind["calm"])
    assert blind["ratio"] > 2


@pytest.mark.parametrize("seed", range(3))
def test_exact_checks(seed: int) -> None:
    assert paper._demosaiced("rggb", seed) < 1e-12
    assert paper._demosaiced("bggr", seed) > 0.1
    assert paper._there_and_back(seed) < 1e-9
    assert paper._size_of_f() == 0


def test_branches() -> None:
    with seeded(0, "nets"):
        purify = RawDefenseMap(RGBToRawNet(4), LearnedISP(4), SimpleISP()).eval()
    assert paper._branches(purify, images().x) < 1e-6


def test_the_strength_of_a_filter_is_chosen_by_cost_and_then_by_accuracy() -> None:
    found = [{"clean": 0.5, "pgd": 0.1}, {"clean": 0.45, "pgd": 0.2}, {"clean": 0.3, "pgd": 0.4}]
    assert max(found, key=lambda f: paper._merit(f, 0.5)) is found[1]
    assert max(found[2:], key=lambda f: paper._merit(f, 0.5)) is found[2]
