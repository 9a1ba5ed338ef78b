"""Schedules and scores against their formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from assay.data import load_data
from assay.generate import (
    VPSDE,
    DenoisingScoreMatching,
    DiscreteSchedule,
    GaussianScore,
    NoisePrediction,
    TinyScoreUNet,
    TinyT2I,
    wrap_diffusers,
)
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

T = torch.tensor([1e-3, 0.02, 0.3, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("steps", [0, 10, 20])
def test_a_text_to_image_model_has_shares_of_the_image_in_0_to_1(steps: int) -> None:
    with pytest.raises(InputError, match="more than 20"):
        TinyT2I.of(["a"], (1, 4, 4), steps=steps)
    bars = TinyT2I.of(["a"], (1, 4, 4), text_width=4, width=4, steps=21 + steps).scheduler.alphas_cumprod
    assert bool(((bars > 0) & (bars < 1)).all())


def test_vpsde_integrates_its_rate_and_keeps_variance() -> None:
    sde = VPSDE()
    for t, a, b in zip(T, sde.alpha(T), sde.sigma(T), strict=True):
        s = torch.linspace(0, float(t), 100_001, dtype=torch.float64)
        integral = torch.trapezoid(0.1 + s * 19.9, s)
        assert float(a) == pytest.approx(float(torch.exp(-integral / 2)), rel=1e-9)
        assert float(a**2 + b**2) == pytest.approx(1.0, abs=1e-12)
    assert float(sde.sigma(torch.tensor([1e-12]))) == pytest.approx((0.1 * 1e-12) ** 0.5, rel=1e-6)
    with pytest.raises(InputError, match="beta0"):
        VPSDE(beta0=0.0)


def test_gaussian_score_is_the_gradient_of_the_noisy_log_density() -> None:
    x = torch.randn(200, 3, generator=torch_rng(0, "x"), dtype=torch.float64) @ torch.tensor(
        [[1.0, 0.5, 0.0], [0.0, 0.3, 0.2], [0.0, 0.0, 0.1]], dtype=torch.float64
    )
    score, sde = GaussianScore.fit(x), VPSDE()
    for t in T:
        a, b = sde.alpha(t[None]), sde.sigma(t[None])
        law = torch.distributions.MultivariateNormal(
            a * x.mean(0), a**2 * x.T.cov(correction=0) + b**2 * torch.eye(3, dtype=torch.float64)
        )
        z = x[:5].clone().requires_grad_()
        (expected,) = torch.autograd.grad(law.log_prob(z).sum(), z)
        torch.testing.assert_close(score(z.detach(), t.expand(5)), expected, rtol=1e-7, atol=1e-9)


class _Net(nn.Module):
    """Noise 0.5 x + the time, and variances that are to be dropped."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.wide, self.seen = wide, torch.empty(0)

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        self.seen = t
        return SimpleNamespace(sample=torch.cat((0.5 * x, x + 9), 1) if self.wide else 0.5 * x)


@pytest.mark.parametrize("wide", [False, True])
def test_noise_becomes_a_score_by_its_deviation(wide: bool) -> None:
    x = torch.rand(4, 2, 3, 3, generator=torch_rng(0, "x"), dtype=torch.float64)
    found = NoisePrediction(_Net(wide))(x, T)
    torch.testing.assert_close(found, -0.5 * x / VPSDE().sigma(T)[:, None, None, None])


def test_diffusers_models_are_asked_by_step_with_their_own_schedule() -> None:
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    net = _Net(False)
    score = wrap_diffusers(net, SimpleNamespace(alphas_cumprod=bars))
    x, t = torch.rand(3, 1, 2, 2, generator=torch_rng(0, "x")), torch.tensor([0.001, 0.02, 1.0])
    found = score(x, t)
    assert net.seen.tolist() == [0, 19, 999]
    torch.testing.assert_close(found, -0.5 * x / (1 - bars[net.seen]).sqrt()[:, None, None, None])
    with pytest.raises(InputError, match="alphas_cumprod"):
        wrap_diffusers(net, SimpleNamespace())
    config = SimpleNamespace(prediction_type="v_prediction")
    with pytest.raises(InputError, match="v_prediction"):
        wrap_diffusers(net, SimpleNamespace(alphas_cumprod=bars, config=config))
    with pytest.raises(InputError, match="within"):
        DiscreteSchedule(torch.tensor([0.5, 1.5]))


def test_training_beats_the_guess_of_no_noise_and_prefers_small_times() -> None:
    data = load_data("digits:train")
    with seeded(0, "net"):
        net = TinyScoreUNet(data.shape, 4)
    method = DenoisingScoreMatching(epochs=2)
    score = method.fit(net, data, seed=0)
    u = torch.rand(4000, 2, generator=torch_rng(0, "u"))
    t = method.times(u)
    assert float((t <= 0.1).double().mean()) == pytest.approx(0.73, abs=0.03)
    x, t = data.x[:200] * 2 - 1, torch.full((200,), 0.3)
    z = torch.randn(x.shape, generator=torch_rng(0, "z"))
    noisy = VPSDE().alpha(t).float()[:, None, None, None] * x + VPSDE().sigma(t).float()[:, None, None, None] * z
    with torch.no_grad():
        assert float((score.noise(noisy, t) - z).square().mean()) < 0.9  # 1 for the start
        assert float(net(noisy, t).abs().max()) == 0.0  # the given network still starts at zero


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (1, 28, 28)])
def test_unet_keeps_the_shape(shape: tuple[int, int, int]) -> None:
    assert TinyScoreUNet(shape, 4)(torch.zeros(2, *shape), torch.tensor([0.1, 1.0])).shape == (2, *shape)
