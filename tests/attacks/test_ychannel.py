"""The attack in YCbCr against its closed form on linear models, and what the channel energies are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.attacks import (
    DDN,
    FGSM,
    L2,
    PGD,
    Linf,
    RandomNoise,
    Square,
    Untargeted,
    YChannelAttack,
    keep_channels,
    perturbation_energy_by_channel,
    perturbation_size_by_channel,
    white_noise_energy,
)
from assay.data import rgb_to_ycbcr
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

RNG = torch_rng(0, "ychannel")
WEIGHT = torch.randn(3, 4, 5, generator=RNG, dtype=torch.float64)
X = 0.3 + 0.4 * torch.rand(6, 3, 4, 5, generator=RNG, dtype=torch.float64)
Y = torch.zeros(6, dtype=torch.int64)
EPS = 0.02
COLUMNS = {"Y": (1, 1, 1), "Cb": (0, -0.344136, 1.772), "Cr": (1.402, -0.714136, 0)}


class Plane(nn.Module):
    """Two classes, the second ahead by WEIGHT . x - ``bias``."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x):
        gap = (x * WEIGHT).flatten(1).sum(1) - self.bias
        return torch.stack((torch.zeros_like(gap), gap), 1)


@pytest.mark.parametrize("channels", [("Y",), ("Cb",), ("Cr",), ("Cb", "Cr"), ("Y", "Cb", "Cr")])
@pytest.mark.parametrize("random_start", [False, True])
def test_steepest_in_the_channels_on_a_plane(channels: tuple[str, ...], random_start: bool) -> None:
    """The gap grows by eps times the l1 norm of the gradient in YCbCr: its inner products with the columns."""
    base = PGD(ball=Linf(EPS), steps=5, early_stop=False, random_start=random_start)
    x_adv = YChannelAttack(base=base, channels=channels)(Plane(), X, Y, seed=0)
    columns = torch.tensor([COLUMNS[c] for c in channels], dtype=torch.float64)
    best = EPS * torch.einsum("kc,chw->khw", columns, WEIGHT).abs().sum()
    gained = ((x_adv - X) * WEIGHT).flatten(1).sum(1)
    torch.testing.assert_close(gained, best.expand(6), rtol=1e-5, atol=0)
    others = [k for k, name in enumerate(COLUMNS) if name not in channels]
    assert rgb_to_ycbcr(x_adv - X)[:, others].abs().sum() < 1e-9


def test_luminance_moves_all_colors_alike_and_gains_less_than_rgb() -> None:
    base = FGSM(ball=Linf(EPS), early_stop=False)
    luma, full = YChannelAttack(base=base)(Plane(), X, Y, seed=0) - X, base(Plane(), X, Y, seed=0) - X
    torch.testing.assert_close(luma[:, :1].expand_as(luma), luma)
    torch.testing.assert_close(luma.abs(), torch.full_like(luma, EPS))
    assert ((full - luma) * WEIGHT).flatten(1).sum(1).min() > 0


def test_euclidean_length_in_rgb_is_root_three_of_that_in_luminance() -> None:
    base = PGD(ball=L2(0.1), steps=10, early_stop=False)
    attack = YChannelAttack(base=base)
    result = attack.run(Plane(), X, Untargeted(Y), seed=0)
    torch.testing.assert_close(result.distance, torch.full_like(result.distance, 0.1))
    rgb = (result.x_adv - X).flatten(1).norm(dim=1)
    torch.testing.assert_close(rgb, math.sqrt(3) * result.distance)


def test_minimum_norm_base_finds_the_distance_to_the_plane() -> None:
    with torch.no_grad():
        gap = Plane()(X)[:, 1]
    bias = float(gap.max()) + 0.1
    result = YChannelAttack(base=DDN(steps=200)).run(Plane(bias), X, Untargeted(Y), seed=0)
    assert result.success.all()
    expected = (bias - gap) / WEIGHT.sum(0).norm()
    torch.testing.assert_close(result.distance, expected, rtol=0.02, atol=0)
    never = YChannelAttack(base=DDN(steps=3)).run(Plane(1e6), X, Untargeted(Y), seed=0)
    assert never.distance.isinf().all()


def test_other_bounds_are_the_same_attack_in_other_units() -> None:
    class Scaled(nn.Module):
        def forward(self, x):
            return Plane()((x + 255) / 510)

    base = PGD(ball=Linf(EPS), steps=5)
    unit = YChannelAttack(base=base)(Plane(), X, Y, seed=0)
    wide = YChannelAttack(base=PGD(ball=Linf(510 * EPS), steps=5), bounds=(-255.0, 255.0))
    torch.testing.assert_close((wide(Scaled(), 510 * X - 255, Y, seed=0) + 255) / 510, unit)


@pytest.mark.parametrize("channels", [("Y",), ("Cb", "Cr")])
def test_clipping_at_the_edge_of_the_cube(channels: tuple[str, ...]) -> None:
    x = X.round()
    attack = YChannelAttack(base=RandomNoise(ball=Linf(EPS)), channels=channels)
    result = attack.run(Plane(), x, Untargeted(Y), seed=0)
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    assert result.distance.max() <= (EPS if channels == ("Y",) else 1.24 * EPS) + 1e-12


def test_black_images_can_be_brightened() -> None:
    """Rounding on the way to YCbCr and back must not hide the gradient of values at the bounds."""
    x, net = torch.zeros(2, 3, 4, 5), Plane().float()
    x_adv = YChannelAttack(base=FGSM(ball=Linf(EPS), early_stop=False))(net, x, Y[:2], seed=0)
    up = WEIGHT.sum(0) > 0
    torch.testing.assert_close(x_adv, (EPS * up).float().expand_as(x_adv))


@pytest.mark.parametrize(
    "options", [{"base": Square()}, {"channels": ()}, {"channels": ("Y", "Y")}, {"channels": ("L",)}]
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(InputError):
        YChannelAttack(**options)


def test_grey_images_and_foreign_callables_are_refused() -> None:
    with pytest.raises(InputError, match="color images"):
        YChannelAttack()(nn.Flatten(), X[:, :1], Y, seed=0)
    with pytest.raises(InputError, match="torch module"):
        YChannelAttack()(lambda z: z.flatten(1), X, Y, seed=0)


def test_random_signs_have_the_analytic_shares() -> None:
    signs = 2.0 * torch.randint(2, (200, 3, 32, 32), generator=torch_rng(3)) - 1
    shares = perturbation_energy_by_channel(torch.full_like(signs, 0.5), 0.5 + 0.01 * signs)
    expected = {"Y": 0.3528, "Cb": 0.3064, "Cr": 0.3409}
    assert white_noise_energy() == pytest.approx(expected, abs=1e-4)
    assert shares == pytest.approx(expected, abs=0.005)
    assert sum(shares.values()) == pytest.approx(1)


def test_energy_and_size_of_pure_perturbations() -> None:
    assert perturbation_energy_by_channel(X, X + 0.1) == pytest.approx({"Y": 1, "Cb": 0, "Cr": 0}, abs=1e-12)
    assert perturbation_size_by_channel(X, X + 0.1) == pytest.approx({"Y": 0.1, "Cb": 0, "Cr": 0}, abs=1e-12)
    chroma = X + 0.1 * torch.tensor(COLUMNS["Cb"]).view(1, 3, 1, 1)
    assert perturbation_energy_by_channel(X, chroma) == pytest.approx({"Y": 0, "Cb": 1, "Cr": 0}, abs=1e-6)


def test_parts_add_up_and_the_other_channels_come_back() -> None:
    x_adv = X + 0.05 * torch.randn(X.shape, generator=torch_rng(4), dtype=torch.float64)
    luma, chroma = keep_channels(X, x_adv, ("Y",)), keep_channels(X, x_adv, ("Cb", "Cr"))
    torch.testing.assert_close(luma + chroma, X + x_adv)
    torch.testing.assert_close(rgb_to_ycbcr(luma)[:, 1:], rgb_to_ycbcr(X)[:, 1:])
    torch.testing.assert_close(rgb_to_ycbcr(chroma)[:, 0], rgb_to_ycbcr(X)[:, 0])
    torch.testing.assert_close(keep_channels(X, x_adv, ("Y", "Cb", "Cr")), x_adv)


@pytest.mark.parametrize("measure", [perturbation_energy_by_channel, perturbation_size_by_channel])
def test_measures_refuse(measure) -> None:
    for a, b in ((X[:, :1], X[:, :1]), (X, X[:3]), (X, X / 0)):
        with pytest.raises(InputError):
            measure(a, b)
    with pytest.raises(InputError, match="equals"):
        perturbation_energy_by_channel(X, X)
    with pytest.raises(InputError, match="channel"):
        keep_channels(X, X, ("R",))
