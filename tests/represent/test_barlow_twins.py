"""Barlow Twins and the linear probe: closed forms and invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.data import Data, load_data
from assay.represent import Augmentation, BarlowTwins, barlow_twins_loss, linear_probe
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name), dtype=torch.float64)


def test_the_loss_is_that_of_numpys_correlations() -> None:
    a, b = draw("a", 50, 4), draw("b", 50, 4)
    c = torch.corrcoef(torch.cat([a, b], 1).T)[:4, 4:]
    expected = sum(float((1 - c[i, j]) ** 2 if i == j else 0.1 * c[i, j] ** 2) for i in range(4) for j in range(4))
    assert float(barlow_twins_loss(a, b, 0.1)) == pytest.approx(expected, rel=1e-4)
    scaled = barlow_twins_loss(a * 3 + 5, b * torch.arange(1, 5), 0.1)
    assert float(scaled) == pytest.approx(expected, rel=1e-3)


def test_equal_views_of_independent_dimensions_have_no_loss() -> None:
    whole = torch.linalg.qr(draw("q", 64, 6) - draw("q", 64, 6).mean(0))[0]
    z = (whole - whole.mean(0)) * 100
    assert float(barlow_twins_loss(z, z)) < 1e-4
    copied = z[:, :1].expand(-1, 4)
    assert float(barlow_twins_loss(copied, copied, 0.5)) == pytest.approx(0.5 * 12, rel=1e-3)


def test_training_brings_views_together_and_leaves_the_backbone() -> None:
    data = load_data("digits:train").limit(128)
    with seeded(0, "net"):
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).eval()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    views = Augmentation(scale=(0.8, 1.0), flip=False, jitter=0.0, noise=0.05)
    method = BarlowTwins(projector=(), augment=views, steps=60, batch_size=64, lr=5e-3)
    state = torch.get_rng_state()
    trained = method.fit(backbone, data, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    again = method.fit(backbone, data, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    a, b = (views(data.x, Draws(7, name, data.index)) for name in "ab")
    with torch.no_grad():
        losses = [barlow_twins_loss(m(a), m(b)) for m in (backbone, trained)]
    assert losses[1] < losses[0]
    wide = BarlowTwins(projector=(6, 5), steps=1, batch_size=64, augment=views).fit(backbone, data, seed=0)
    assert wide(data.x[:2]).shape == (2, 5)


def test_the_probe_reads_what_is_there() -> None:
    train, test = load_data("digits:train").limit(200), load_data("digits:test").limit(200)
    seen, blind = linear_probe(nn.Flatten(), train, test), linear_probe(_Blind(), train, test)
    assert seen > 0.85
    assert blind < 0.3
    assert seen == linear_probe(nn.Flatten(), train, test)


class _Blind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2)


def test_bad_input() -> None:
    data = load_data("digits:train").limit(20)
    one = Data(data.x, torch.zeros_like(data.y), data.classes)
    for call in (
        lambda: barlow_twins_loss(draw("a", 5, 2), draw("b", 5, 3)),
        lambda: barlow_twins_loss(draw("a", 1, 2), draw("b", 1, 2)),
        lambda: barlow_twins_loss(draw("a", 5, 2), draw("b", 5, 2), -1.0),
        lambda: BarlowTwins(projector=(0,)).fit(nn.Flatten(), data, seed=0),
        lambda: linear_probe(nn.Flatten(), one, data),
        lambda: linear_probe(nn.Flatten(), data, data, penalty=0.0),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
