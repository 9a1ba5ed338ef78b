"""How a perturbation of color images divides into luminance and chrominance.

Pestana et al. (2020, arXiv:2003.00883) find most of it in the Y channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data import rgb_to_ycbcr, ycbcr_to_rgb
from assay.data.color import CHANNELS, FORWARD, check_color
from assay.runtime.errors import InputError, unknown


def channel_rows(where: str, channels: Sequence[str]) -> tuple[int, ...]:
    """The positions of ``channels`` in (Y, Cb, Cr); InputError unless they are some of these, each once."""
    for name in channels:
        if name not in CHANNELS:
            raise unknown(f"channel of {where}", str(name), CHANNELS)
    if not channels or len(set(channels)) < len(channels):
        raise InputError(f"{where}: channels is {tuple(channels)}; expected some of {CHANNELS}, each once")
    return tuple(CHANNELS.index(name) for name in channels)


def _moved(where: str, x: Tensor, x_adv: Tensor) -> Float[Tensor, "n 3 h w"]:
    """x_adv - x in YCbCr: the map is linear, so the offset of Cb and Cr has no part in it."""
    check_color(where, x)
    check_color(where, x_adv)
    if x.shape != x_adv.shape:
        raise InputError(f"{where}: x_adv has shape {tuple(x_adv.shape)}; expected {tuple(x.shape)} as x")
    return rgb_to_ycbcr(x_adv.double() - x.double())


def perturbation_energy_by_channel(x: Float[Tensor, "n 3 h w"], x_adv: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
    """The shares of Y, Cb and Cr in the squared length of ``x_adv`` - ``x`` in YCbCr, over all images; they sum to 1.

    A share says little by itself: compare it with ``white_noise_energy()``, which is not a third each. x and x_adv are
    on any common scale. InputError unless both are finite (n, 3, h, w) and differ.
    """
    where = "perturbation_energy_by_channel"
    energy = _moved(where, x, x_adv).square().sum((0, 2, 3))
    if not energy.sum() > 0:
        raise InputError(f"{where}: x_adv equals x; expected a perturbation")
    return dict(zip(CHANNELS, (energy / energy.sum()).tolist(), strict=True))


def perturbation_size_by_channel(x: Float[Tensor, "n 3 h w"], x_adv: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
    """The mean absolute displacement of Y, Cb and Cr in the units of ``x``. InputError unless both are (n, 3, h, w)."""
    size = _moved("perturbation_size_by_channel", x, x_adv).abs().mean((0, 2, 3))
    return dict(zip(CHANNELS, size.tolist(), strict=True))


def white_noise_energy() -> dict[str, float]:
    """The expected shares of a perturbation with uncorrelated R, G and B of equal variance: about .353, .307, .341.

    A channel has the squared norm of its row of the color matrix.
    """
    energy = torch.tensor(FORWARD, dtype=torch.float64).square().sum(1)
    return dict(zip(CHANNELS, (energy / energy.sum()).tolist(), strict=True))


def keep_channels(
    x: Float[Tensor, "n 3 h w"],
    x_adv: Float[Tensor, "n 3 h w"],
    channels: Sequence[str],
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Float[Tensor, "n 3 h w"]:
    """``x`` with only the part of the perturbation that lies in ``channels``, clipped to ``bounds``.

    ``channels`` are some of "Y", "Cb" and "Cr": with ("Y",) the clean Cb and Cr come back. InputError for other names
    and unless x and x_adv are finite (n, 3, h, w).
    """
    moved = _moved("keep_channels", x, x_adv)
    kept = torch.zeros_like(moved)
    rows = list(channel_rows("keep_channels", channels))
    kept[:, rows] = moved[:, rows]
    return (x + ycbcr_to_rgb(kept).to(x)).clamp(*bounds)
