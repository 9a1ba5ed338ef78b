"""rRCM's loss against cross-entropy written out, its schedules against their definition, and what training does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.data import load_data, noise_levels
from assay.represent import (
    Augmentation,
    FiLMConvNet,
    NoiseConditionedEncoder,
    RRCMNetwork,
    RRCMPretrainer,
    SmallViT,
    TimmTimeToken,
    info_nce,
    rrcm_loss,
)
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

SHORT = RRCMPretrainer(
    projection=(32, 16),
    sigma_max=10.0,
    scales=(5, 10),
    ema=(0.9, 0.99),
    average=None,
    augment=Augmentation(scale=(0.8, 1.0), jitter=0.0, flip=False),
    steps=12,
    batch_size=32,
    lr=2e-3,
)


def _encoder(seed: int = 0) -> nn.Module:
    with seeded(seed, "net"):
        return NoiseConditionedEncoder(FiLMConvNet((1, 8, 8), (8, 16), 24))


def _case(n: int = 6) -> tuple[RRCMNetwork, RRCMNetwork, list[Tensor]]:
    with seeded(1, "heads"):
        online, target = (RRCMNetwork(_encoder(k), nn.Linear(24, 10)).double() for k in (0, 1))
    g = torch_rng(0, "images")
    return online, target, [torch.randn(n, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(4)]


def test_info_nce_is_cross_entropy_of_scaled_cosines() -> None:
    g = torch_rng(0, "pairs")
    f, h = (torch.randn(9, 5, generator=g, dtype=torch.float64) for _ in range(2))
    similarity = F.cosine_similarity(f[:, None], h[None], dim=2)
    expected = F.cross_entropy(similarity / 0.3, torch.arange(9))
    assert float(info_nce(f, h, 0.3)) == pytest.approx(float(expected), abs=1e-12)
    with pytest.raises(InputError, match="n >= 2"):
        info_nce(f[:1], h[:1])
    with pytest.raises(InputError, match="tau"):
        info_nce(f, h, 0.0)


def test_loss_is_that_of_adjacent_levels_of_one_path() -> None:
    online, target, (x, one, two, noise) = _case()
    levels = noise_levels(5, 0.01, 4.0)
    with torch.no_grad():
        found = rrcm_loss(online, target, x, (one, two), levels, 2, noise, tau=0.3)

    def nce(f: Tensor, g: Tensor) -> Tensor:
        return F.cross_entropy(F.cosine_similarity(f[:, None], g[None], dim=2) / 0.3, torch.arange(6))

    def seen(network: nn.Module, point: Tensor, level: float) -> Tensor:
        return network(point + level * noise, torch.full((6,), level, dtype=torch.float64))

    s = levels.tolist()
    near, lower = (seen(online.encoder, x, s[k]) for k in (2, 3))
    assert float(found["consistency"]) == pytest.approx(float(nce(near, lower).detach()), abs=1e-6)
    heads = {
        (net, k): net.head(seen(net.encoder, v, s[-1])) for net in (online, target) for k, v in enumerate((one, two))
    }
    contrast = nce(heads[online, 0], heads[target, 1]) + nce(heads[online, 1], heads[target, 0])
    assert float(found["contrast"]) == pytest.approx(float(contrast.detach()), abs=1e-6)
    assert float(found["loss"]) == pytest.approx(float((contrast + nce(near, lower)).detach()), abs=1e-6)


def test_no_gradient_reaches_the_targets() -> None:
    online, target, (x, one, two, noise) = _case()
    levels = noise_levels(5, 0.01, 4.0)
    parameters = list(online.encoder.parameters())
    terms = rrcm_loss(online, target, x, (one, two), levels, 1, noise)
    got = torch.autograd.grad(terms["consistency"], parameters, retain_graph=True)
    sigma = levels[2].expand(6)
    constant = online.encoder(x + levels[2] * noise, sigma).detach()
    near = online.encoder(x + levels[1] * noise, levels[1].expand(6))
    expected = torch.autograd.grad(info_nce(near, constant), parameters)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, expected, strict=True))
    terms["loss"].backward()
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is not None for p in online.head.parameters())


def test_levels_are_even_in_the_seventh_root_and_grow_in_number() -> None:
    levels = noise_levels(40)
    assert float(levels[0]) == pytest.approx(80)
    assert float(levels[-1]) == pytest.approx(0.002)
    steps = np.diff(levels.numpy() ** (1 / 7))
    assert np.allclose(steps, steps[0], rtol=1e-9)
    method = RRCMPretrainer()
    counts = [method.count(k, 300_000) for k in range(0, 300_001, 1000)]
    assert [counts[0], counts[1], counts[-1]] == [21, 41, 81]
    assert sorted(set(counts)) == [21, 41, 81]
    assert counts == sorted(counts)
    # K' = ceil(300000 / log2 5) = 129203 steps a stage
    assert [method.count(k, 300_000) for k in (129_203, 129_204)] == [41, 81]
    assert len(method.levels) == 81


def test_decay_rises_from_start_to_end() -> None:
    method = RRCMPretrainer()
    found = [method.decay(k, 1000) for k in range(0, 1001, 10)]
    assert found[0] == pytest.approx(0.99)
    assert found[-1] == pytest.approx(0.9999, abs=1e-7)
    assert found == sorted(found)
    even = math.sqrt(0.01 * (0.9999**2 - 0.99**2) + 0.99**2)
    c = 2 / (1 + math.exp(-15 * (even - 0.99) / 0.0099)) - 1
    assert method.decay(10, 1000) == pytest.approx(c * 0.9999 + (1 - c) * 0.99, abs=1e-12)


def test_scaled_inputs_have_unit_variance() -> None:
    caught: list[Tensor] = []

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            caught.append(t)
            return x

    g = torch_rng(0, "spread")
    clean, noise = (torch.randn(20_000, 4, generator=g) for _ in range(2))
    for sigma in (0.002, 0.5, 80.0):
        level = torch.full((20_000,), sigma)
        out = NoiseConditionedEncoder(Net())(0.5 * clean + sigma * noise, level)
        assert float(out.var()) == pytest.approx(1, abs=0.02)
        assert float(caught[-1][0]) == pytest.approx(250 * math.log(sigma), rel=1e-5)
    with pytest.raises(InputError, match="sigma"):
        NoiseConditionedEncoder(Net())(clean, torch.zeros(20_000))


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_encoders_look_at_each_sample_and_at_its_level(kind: str) -> None:
    with seeded(0, kind):
        net = FiLMConvNet((1, 8, 8), (8,), 16) if kind == "conv" else TimmTimeToken(SmallViT((1, 8, 8), 4, 16, 2, 2))
    encoder = NoiseConditionedEncoder(net)
    x = torch.rand(5, 1, 8, 8, generator=torch_rng(0, "x"))
    sigma = torch.tensor([0.1, 0.2, 1.0, 3.0, 0.1])
    with torch.no_grad():
        found = encoder(x, sigma)
        assert found.shape == (5, 16)
        assert torch.allclose(found[2:4], encoder(x[2:4], sigma[2:4]), atol=1e-5)
        assert float((found - encoder(x, sigma + 0.5)).abs().max()) > 1e-3
    with pytest.raises(InputError, match="patch_embed"):
        TimmTimeToken(nn.Linear(2, 2))


def test_training_agrees_more_leaves_its_inputs_and_is_repeatable() -> None:
    data, encoder = load_data("digits:train").limit(200), _encoder()
    before, state = [p.clone() for p in encoder.parameters()], torch.random.get_rng_state()
    method = replace(SHORT, steps=30)
    trained = method.fit(encoder, data, seed=3)
    again = method.fit(encoder, data, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    assert all(p.requires_grad for p in encoder.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    x = 2 * data.x[:100] - 1
    noise = torch.randn(x.shape, generator=torch_rng(0, "noise"))
    losses = []
    for net in (encoder, trained):
        with torch.no_grad():
            high, low = (net(x + s * noise, torch.full((100,), s)) for s in (0.8, 0.4))
        losses.append(float(info_nce(high, low)))
    assert losses[1] < losses[0] - 0.3, losses


def test_the_noise_does_not_depend_on_the_layout_of_the_images() -> None:
    data = load_data("digits:train").limit(8)
    data = replace(data, x=data.x.repeat(1, 3, 1, 1))
    last = replace(data, x=data.x.contiguous(memory_format=torch.channels_last))
    with seeded(0, "net"):
        encoder = NoiseConditionedEncoder(FiLMConvNet((3, 8, 8), (2,), 4))
    method = replace(SHORT, steps=1, batch_size=8, average=None)
    one, two = (predict_at(method.fit(encoder, d, seed=0), data.x) for d in (data, last))
    assert torch.allclose(one, two, atol=1e-5)


def test_double_precision_stays() -> None:
    data = load_data("digits:train").limit(8)
    double = replace(data, x=data.x.double())
    assert predict_at(replace(SHORT, steps=1).fit(_encoder().double(), double, seed=0), double.x).dtype == torch.float64


def predict_at(encoder: nn.Module, x: Tensor) -> Tensor:
    """Representations at a level of 0.5."""
    with torch.no_grad():
        return encoder(x, torch.full((len(x),), 0.5))


def test_the_target_follows_and_the_ablation_drops_one_term() -> None:
    data = load_data("digits:train").limit(64)
    parts = [replace(SHORT, weights=w).fit(_encoder(), data, seed=0) for w in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))]
    states = [torch.cat([p.flatten() for p in part.parameters()]) for part in parts]
    assert not torch.allclose(states[0], states[1])
    assert not torch.allclose(states[0], states[2])


def test_bad_input() -> None:
    online, target, (x, one, two, noise) = _case()
    levels = noise_levels(4)
    with pytest.raises(InputError, match="at least two"):
        rrcm_loss(online, target, x[:1], (one[:1], two[:1]), levels, 0, noise[:1])
    with pytest.raises(InputError, match="one shape"):
        rrcm_loss(online, target, x, (one[:4], two), levels, 0, noise)
    for index in (-1, 3):
        with pytest.raises(InputError, match="index"):
            rrcm_loss(online, target, x, (one, two), levels, index, noise)
    for bad in ({"scales": (0, 5)}, {"ema": (0.9, 0.8)}, {"batch_size": 1}, {"tau": 0.0}, {"sigma_min": -1.0}):
        with pytest.raises(InputError):
            RRCMPretrainer(**bad)
    with pytest.raises(InputError, match="steps >= 2"):
        noise_levels(1)
