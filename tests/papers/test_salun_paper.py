"""The shams of salun: a mask of the same size elsewhere; masked gradients that only decay leaks through."""

from __future__ import annotations

import pytest
import torch

from assay.data import load_data
from assay.papers.salun import LEVELS, RATES, SCHEDULE, _drawn, _GradientMaskOnly, _moved, _net, _Noise, _permuted
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import SalUn, weight_saliency_mask


@pytest.fixture(scope="module")
def given() -> dict:
    train, test = load_data("digits:train").limit(120), load_data("digits:test")
    model = Supervised(epochs=1).fit(_net(1, 10, (4, 8, 8), 0), train, seed=0)
    forget, retain = train.split(0.3, seed=0)
    return {"subject": Subject(model, test, train), "forget": forget, "retain": retain}


def test_permuted_mask_is_as_large_and_elsewhere(given: dict) -> None:
    real, moved = weight_saliency_mask(given["subject"].model, given["forget"]), _permuted(given, 0)
    a, b = (torch.cat([m.flatten() for m in mask.values()]) for mask in (real, moved))
    assert a.sum() == b.sum()
    assert 0.4 < float((a != b).double().mean()) < 0.6


def test_masked_gradients_leak_by_decay_alone(given: dict) -> None:
    subject, parts = given["subject"], (given["forget"], given["retain"])
    mask = weight_saliency_mask(subject.model, parts[0])
    real, leaking = (
        [cls(mask=mask, epochs=2, lr=RATES[-1], batch_size=32, weight_decay=d).forget(subject, *parts, seed=0)
         for d in (0.0, 5e-4)] for cls in (SalUn, _GradientMaskOnly)
    )  # fmt: skip
    assert [_moved(subject.model, m, mask) for m in real] == [0, 0]
    assert _moved(subject.model, leaking[0], mask) == 0
    assert _moved(subject.model, leaking[1], mask) > 100
    pairs = zip(real[0].state_dict().values(), leaking[0].state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


class _Exact(torch.nn.Module):
    """The denoiser of a single image."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return (2 * self.image - 1).expand_as(x)


def test_sampler_and_noise_of_a_single_image() -> None:
    """Every start leads to it, and the noise is what is left of x_t when the image is taken out."""
    g = torch.Generator().manual_seed(0)
    image, noise = torch.rand(1, 1, 4, 4, generator=g), torch.randn(3, 1, 4, 4, generator=g)
    found = _drawn(_Exact(image), torch.zeros(3, dtype=torch.int64), (1, 4, 4), 0)
    assert torch.allclose(found, image.expand(3, -1, -1, -1), atol=0.02)
    step = torch.tensor([3, 50, len(LEVELS) - 1])
    bar = SCHEDULE.alphas_bar[step].reshape(-1, 1, 1, 1)
    noisy = bar.sqrt() * (2 * image - 1) + (1 - bar).sqrt() * noise
    assert torch.allclose(_Noise(_Exact(image))(noisy, step), noise, atol=1e-3)
