"""The factor two between pixels and [-1, 1], the nearest level, layer-wise rates, and what fine-tuning learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.certify import LevelClassifier, RandomizedSmoothing, consistency_finetune
from assay.certify.consistency_finetune import layer_factors, new_head
from assay.data import load_data, noise_levels
from assay.represent import FiLMConvNet, NoiseConditionedEncoder, SmallViT, TimmTimeToken
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import seeded


class _Side(nn.Module):
    """w . z - b of an image in [-1, 1], and the levels that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        self.told.append(sigma)
        return z @ torch.tensor([[3.0], [-4.0]]) - 0.5


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_certified_radius_is_the_distance_in_the_datas_own_units(bounds: tuple[float, float]) -> None:
    width = bounds[1] - bounds[0]
    sigma, levels = 0.25 * width, noise_levels(81)
    side, head = _Side(), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    model = LevelClassifier(side, head, sigma=sigma, levels=levels, bounds=bounds)
    x = bounds[0] + width * torch.tensor([[0.9, 0.6], [0.8, 0.3], [0.2, 0.5]])
    z = 2 * (x - bounds[0]) / width - 1
    value = z @ torch.tensor([3.0, -4.0]) - 0.5
    distance = value.abs() / 5 * width / 2
    found = RandomizedSmoothing(sigma=sigma, n0=100, n=20_000).certify(model, x, (value > 0).long())
    assert found.verdict.all()
    ratio = found.radius / distance
    assert ((ratio > 0.9) & (ratio < 1.02)).all(), ratio
    nearest = levels[(levels - 0.5).abs().argmin()]
    assert all(torch.allclose(s, nearest.float().expand(len(s))) for s in side.told)


def test_learns_from_few_labels_at_its_noise() -> None:
    data, test = load_data("digits:train"), load_data("digits:test")
    with seeded(0, "net"):
        encoder = NoiseConditionedEncoder(FiLMConvNet((1, 8, 8), (8, 16), 24))
    before = [p.clone() for p in encoder.parameters()]
    options = {"sigma": 0.25, "levels": noise_levels(11), "epochs": 6, "batch_size": 50, "lr": 5e-3}
    model = consistency_finetune(encoder, data, lbd=2.0, eta=0.1, seed=0, **options)  # type: ignore[arg-type]
    again = consistency_finetune(encoder, data, lbd=2.0, eta=0.1, seed=0, **options)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    assert (predict(model, test.x).argmax(1) == test.y).float().mean() > 0.7
    with pytest.raises(InputError, match="layer_decay"):
        consistency_finetune(encoder, data, sigma=0.25, levels=noise_levels(5), layer_decay=0.0, seed=0)
    with pytest.raises(InputError, match="levels"):
        LevelClassifier(encoder, nn.Linear(24, 10), sigma=0.25, levels=torch.tensor([]))


def test_layers_nearer_to_the_input_learn_more_slowly() -> None:
    data = load_data("digits:train").limit(20)
    with seeded(0, "net"):
        encoder = NoiseConditionedEncoder(TimmTimeToken(SmallViT((1, 8, 8), 4, 16, 3, 2)))
    model = LevelClassifier(encoder, new_head(encoder, data, 0), sigma=0.25, levels=noise_levels(5))
    factors = dict(zip([n for n, _ in model.named_parameters()], layer_factors(model, 0.5), strict=True))
    expected = {
        "encoder.net.vit.patch_embed.weight": 0.5**4,
        "encoder.net.vit.cls_token": 0.5**4,
        "encoder.net.place": 0.5**4,
        "encoder.net.vit.blocks.0.linear1.weight": 0.5**3,
        "encoder.net.vit.blocks.2.linear1.weight": 0.5,
        "encoder.net.vit.norm.weight": 1.0,
        "head.weight": 1.0,
    }
    assert {name: factors[name] for name in expected} == expected
    assert float(model.head.weight.detach().std()) < 1e-4  # type: ignore[operator]
