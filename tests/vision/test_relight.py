"""The light of a sign: against numpy, scikit-image's constants by hand, and round trips."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.runtime.errors import InputError
from assay.vision import fit_relight, from_lalphabeta, realism_error, relight, to_lalphabeta
from assay.vision.color_spaces import lightness, saturation_value, with_lightness, with_saturation_value
from assay.vision.relight import CHANNELS

METHODS = list(CHANNELS)


def colors(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = colors(4, 1, 8, 9, seed=5) < 0.7


@pytest.mark.parametrize("q", [0.0, 0.1, 0.2])
def test_percentiles_are_those_of_numpy(q: float) -> None:
    img = colors(4, 3, 8, 9)
    found = fit_relight(img, MASK, q=q)
    for k in range(4):
        low, high = np.percentile(img[k][:, MASK[k, 0]], (100 * q, 100 * (1 - q)))
        assert found[k, 0].tolist() == pytest.approx([high - low, low], abs=1e-12)


@pytest.mark.parametrize("method", ["percentile", "polynomial"])
def test_light_is_recovered(method: str) -> None:
    syn = colors(4, 3, 8, 9).round()  # black and white, so that quantiles are 0 and 1
    light = torch.tensor([[[0.5, 0.2]], [[0.9, 0.1]], [[0.3, 0.0]], [[0.2, 0.4]]], dtype=torch.float64)
    img = relight(syn, light, "percentile")
    found = fit_relight(img, MASK, method, syn=syn)  # type: ignore[arg-type]
    torch.testing.assert_close(found, light.expand_as(found), rtol=0, atol=1e-9)


def test_polynomial_is_least_squares_without_the_worst_fifth() -> None:
    syn, img = colors(4, 3, 8, 9, seed=1), colors(4, 3, 8, 9, seed=2)
    found = fit_relight(img, MASK, "polynomial", syn=syn)
    for k in range(4):
        for c in range(3):
            x, y = syn[k, c][MASK[k, 0]].numpy(), img[k, c][MASK[k, 0]].numpy()
            kept = np.argsort(np.abs(x - y))[: round(0.8 * len(x))]
            np.testing.assert_allclose(found[k, c], np.polyfit(x[kept], y[kept], 1), atol=1e-9)
    flat = fit_relight(img, MASK, "polynomial", q=0.0, syn=torch.full_like(syn, 0.5))
    assert (flat[..., 0] == 0).all()
    torch.testing.assert_close(flat[0, 0, 1], img[0, 0][MASK[0, 0]].mean())


def test_color_transfer_matches_mean_and_deviation() -> None:
    syn, img = colors(4, 3, 8, 9, seed=1), colors(4, 3, 8, 9, seed=2) * 0.5 + 0.2
    coeffs = fit_relight(img, MASK, "color-transfer", syn=syn)
    moved = coeffs[..., :1, None] * to_lalphabeta(syn) + coeffs[..., 1:, None]
    wanted = to_lalphabeta(img)
    for k in range(4):
        for got, want in zip(moved[k][:, MASK[k, 0]], wanted[k][:, MASK[k, 0]], strict=True):
            assert got.mean().item() == pytest.approx(want.mean().item(), abs=1e-9)
            assert got.std().item() == pytest.approx(want.std().item(), abs=1e-9)
    torch.testing.assert_close(relight(syn, coeffs, "color-transfer"), from_lalphabeta(moved).clamp(0, 1))


@pytest.mark.parametrize("method", METHODS)
def test_no_change_of_light_changes_nothing(method: str) -> None:
    patch = 0.05 + 0.9 * colors(2, 3, 6, 6)
    still = torch.tensor([1.0, 0.0]).expand(2, CHANNELS[method], 2)
    torch.testing.assert_close(relight(patch, still, method), patch, rtol=0, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_patch_keeps_its_gradient(method: str) -> None:
    patch = (0.2 + 0.6 * colors(2, 3, 4, 4)).requires_grad_()
    coeffs = torch.tensor([0.6, 0.1]).double().expand(2, CHANNELS[method], 2)
    assert torch.autograd.gradcheck(lambda p: relight(p, coeffs, method), patch, atol=1e-5)  # type: ignore[arg-type]


def test_color_spaces() -> None:
    x = colors(1, 3, 5, 5)
    torch.testing.assert_close(from_lalphabeta(to_lalphabeta(x)), x, rtol=0, atol=1e-6)
    grey = torch.full((1, 3, 1, 1), 0.3, dtype=torch.float64)
    assert to_lalphabeta(grey)[0, 1:].abs().max() < 2e-2  # opponent channels of grey, up to the published digits
    sv = saturation_value(x)
    for i in range(5):
        for j in range(5):
            _, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
            assert sv[0, :, i, j].tolist() == pytest.approx([s, v], abs=1e-6)
    other = with_saturation_value(x, torch.full_like(sv, 0.5))
    h, s, v = colorsys.rgb_to_hsv(*other[0, :, 2, 3].tolist())
    assert (s, v) == pytest.approx((0.5, 0.5), abs=1e-5)
    assert h == pytest.approx(colorsys.rgb_to_hsv(*x[0, :, 2, 3].tolist())[0], abs=1e-5)
    assert lightness(torch.ones(1, 3, 1, 1)).item() == pytest.approx(1, abs=1e-4)
    assert lightness(torch.zeros(1, 3, 1, 1)).item() == pytest.approx(0, abs=1e-4)
    assert lightness(torch.full((1, 3, 1, 1), 0.5)).item() == pytest.approx(0.5339, abs=1e-3)
    torch.testing.assert_close(with_lightness(x, lightness(x)), x, rtol=0, atol=1e-4)
    shifted = with_lightness(x, lightness(x) * 0.9)
    torch.testing.assert_close(lightness(shifted.clamp_min(1e-3)), lightness(x) * 0.9, rtol=0, atol=1e-2)


def test_realism_error() -> None:
    a, b = colors(4, 3, 8, 9), colors(4, 3, 8, 9, seed=1)
    found = realism_error(a, b, MASK)
    for k in range(4):
        assert found[k].item() == pytest.approx((a[k] - b[k])[:, MASK[k, 0]].abs().mean().item())
    assert realism_error(a, a, MASK).tolist() == [0] * 4


def test_bad_input() -> None:
    img = colors(4, 3, 8, 9)
    cases = [
        lambda: fit_relight(img, MASK.double()),  # type: ignore[arg-type]
        lambda: fit_relight(img, MASK[:3]),
        lambda: fit_relight(img, MASK & False),
        lambda: fit_relight(img + 1, MASK),
        lambda: fit_relight(img * torch.nan, MASK),
        lambda: fit_relight(img[:, :1], MASK),
        lambda: fit_relight(img, MASK, q=0.5),
        lambda: fit_relight(img, MASK, "kmean"),  # type: ignore[arg-type]
        lambda: fit_relight(img, MASK, "polynomial"),
        lambda: fit_relight(img, MASK, "color-transfer", syn=img[:, :, 1:]),
        lambda: relight(img, torch.ones(3, 1, 2)),
        lambda: relight(img, torch.ones(4, 1, 2) * torch.nan),
        lambda: relight(img, torch.ones(4, 1, 2), "polynomial"),
        lambda: relight(img, torch.ones(4, 1, 2), "kmean"),  # type: ignore[arg-type]
        lambda: realism_error(img, img[:2], MASK),
        lambda: realism_error(img, img, MASK & False),
    ]
    for case in cases:
        with pytest.raises(InputError) as caught:
            case()
        assert "\n" not in str(caught.value)
