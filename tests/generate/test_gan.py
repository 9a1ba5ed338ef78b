"""The losses of a GAN by hand, and the training of a pair."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from assay.generate import (
    GANTraining,
    StyleGANLike,
    discriminator_loss,
    frechet_distance,
    generated,
    generator_loss,
    r1_penalty,
)
from assay.runtime.errors import InputError
from assay.runtime.random import seeded


def pair(shape: tuple[int, ...] = (2,)) -> tuple[nn.Module, nn.Module]:
    with seeded(0, "pair"):
        size = int(torch.tensor(shape).prod())
        judge = nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.LeakyReLU(0.2), nn.Linear(24, 1))
        return StyleGANLike(4, shape, 24, 2), judge


def test_losses_by_hand() -> None:
    scores = torch.tensor([[0.0], [2.0]])
    assert float(generator_loss(scores)) == pytest.approx((0.693147 + 0.126928) / 2, rel=1e-5)
    assert float(discriminator_loss(scores, -scores)) == pytest.approx(0.693147 + 0.126928, rel=1e-5)
    linear = nn.Linear(3, 1)
    expected = linear.weight.detach().square().sum() / 2
    assert float(r1_penalty(linear, torch.rand(5, 3)).detach()) == pytest.approx(float(expected))


def test_the_parts_of_a_style_generator() -> None:
    generator, _ = pair((1, 4, 4))
    z = torch.randn(5, 4)
    assert generator(z).shape == (5, 1, 4, 4)
    names = {n.partition(".")[0] for n, _ in generator.named_parameters()}
    assert names == {"mapping", "constant", "blocks", "to_rgb"}
    assert torch.allclose(generator(z)[1:2], generator(z[1:2]), atol=1e-6)


def test_training_comes_nearer_and_leaves_what_goes_in() -> None:
    start, judge = pair()
    x = 0.3 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.5, -1.0])
    before = [p.clone() for p in (*start.parameters(), *judge.parameters())]
    state = torch.get_rng_state()
    method = GANTraining(steps=250, batch_size=32, lr=2e-3, r1=0.1, ema=0.9)
    found, _ = method.fit(start, judge, x, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, (*start.parameters(), *judge.parameters()), strict=True))
    far, near = (frechet_distance(generated(g, 1000, seed=3), x) for g in (start, found))
    assert near < 0.3 * far
    again, _ = method.fit(start, judge, x, seed=1)
    assert torch.equal(generated(again, 5, seed=0), generated(found, 5, seed=0))


def test_a_penalty_on_the_generator_acts_and_samples_follow_the_seed() -> None:
    start, judge = pair()
    x = torch.randn(64, 2)
    method = GANTraining(steps=3, lr=1e-3)
    plain, _ = method.fit(start, judge, x, seed=1)
    held, _ = method.fit(start, judge, x, seed=1, penalty=lambda g: 1e3 * sum(p.square().sum() for p in g.parameters()))
    assert not torch.equal(generated(plain, 4, seed=0), generated(held, 4, seed=0))
    assert torch.equal(generated(plain, 4, seed=2), generated(plain, 4, seed=2))


def test_samples_leave_batch_statistics_and_do_not_depend_on_their_number() -> None:
    with seeded(0, "norm"):
        net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    net.latent = 2
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert torch.equal(generated(net, 5, seed=0)[:1], generated(net, 1, seed=0))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert net.training


def test_errors() -> None:
    start, judge = pair()
    with pytest.raises(InputError, match="n >= 1"):
        GANTraining(steps=1).fit(start, judge, torch.zeros(0, 2), seed=0)
    for options in ({"r1": -1.0}, {"lr": 0.0}, {"steps": -1}):
        with pytest.raises(InputError, match="GANTraining"):
            GANTraining(**options)
