"""The sham of ZO-AE-DS asks as much and mixes the answers of samples; shares certified by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.data import load_data
from assay.papers import zo_ae_ds as paper


def test_the_sham_asks_for_the_same_points_and_reads_them_in_another_order() -> None:
    asked: list[Tensor] = []

    def loss(points: Tensor) -> Tensor:
        asked.append(points)
        return points.square().sum(1)

    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real, sham = (
        kind(estimator="cge").gradient(loss, z, torch.Generator())
        for kind in (paper.ZOAEDenoisedSmoothing, paper._RepeatOrder)
    )
    assert asked[0].equal(asked[1])
    torch.testing.assert_close(real, 2 * z)
    assert not sham.allclose(real, atol=0.1)
    alone = paper._RepeatOrder(estimator="cge").gradient(loss, z[:1], torch.Generator())
    torch.testing.assert_close(alone, 2 * z[:1])  # one sample has none to be mixed with


def test_a_constant_answer_is_certified_to_the_largest_radius_for_its_class_alone() -> None:
    test, scale = load_data("digits:test")[:12], paper.PAPER.scale("smoke")

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(10)[3].repeat(len(x), 1)

    row = paper._certified("constant", Constant(), test, scale, 0)
    largest = paper.RandomizedSmoothing(sigma=scale["sigma"], n=scale["draws"]).largest_radius
    share = float((test.y == 3).double().mean())
    assert 0.5 < largest < 0.75
    assert [row[f"sca {r}"] for r in paper.RADII] == [share, share, share, 0.0]
