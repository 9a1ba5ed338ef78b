"""Attacks that move luminance only, or chrominance only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.balls import Ball, Bounds
from assay.attacks.base import Attack, AttackResult, Goal
from assay.attacks.channel_energy import channel_rows
from assay.attacks.engine import GradientAttack, IterativeAttack
from assay.attacks.pgd import PGD
from assay.data import rgb_to_ycbcr, ycbcr_to_rgb
from assay.data.color import check_color
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


@dataclass(frozen=True)
class _Within(Ball):
    """``ball`` over some channels; the others stay."""

    ball: Ball
    rows: tuple[int, ...]

    def _put(self, part: Tensor, whole: Tensor) -> Tensor:
        out = whole.clone()
        out[:, self.rows] = part
        return out

    def norm(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta[:, self.rows])

    def project(self, z: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        return self._put(self.ball.project(z[:, self.rows], x[:, self.rows], bounds), x)

    def draw(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        return self._put(self.ball.draw(x[:, self.rows], draws), torch.zeros_like(x))

    def ascent(self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        return self._put(self.ball.ascent(grad[:, self.rows], z[:, self.rows], bounds), torch.zeros_like(z))


class _Seen(nn.Module):
    """The model as a function of YCbCr in [0, high - low]; gradients reach the moving channels only.

    RGB is clipped to the bounds. What rounding alone puts outside still passes its gradient.
    """

    def __init__(self, model: nn.Module, rows: tuple[int, ...], bounds: Bounds) -> None:
        super().__init__()
        self.model, self.rows, self.bounds = model, rows, bounds

    def encode(self, x: Tensor) -> Tensor:
        low, high = self.bounds
        return (rgb_to_ycbcr(x - low) + self._centre(x)).clamp_(0, high - low)

    def forward(self, z: Tensor) -> Tensor:
        fixed = torch.ones(1, 3, 1, 1, dtype=torch.bool, device=z.device)
        fixed[:, self.rows] = False
        low, high = self.bounds
        rgb = ycbcr_to_rgb(torch.where(fixed, z.detach(), z) - self._centre(z)) + low
        inside = rgb.clamp(low, high)
        rounding = (rgb - inside).abs() <= 1e-5 * (high - low)
        return self.model(torch.where(rounding, rgb + (inside - rgb).detach(), inside))

    def _centre(self, like: Tensor) -> Tensor:
        half = (self.bounds[1] - self.bounds[0]) / 2
        return torch.tensor((0.0, half, half), dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


@dataclass(frozen=True, kw_only=True)
class YChannelAttack(Attack):
    """Any gradient attack in some channels of YCbCr (Pestana et al., 2020, arXiv:2003.00883): by default Y alone.

    ``base`` (FGSM, PGD, DDN ...) runs in the coordinates of ``channels``, some of "Y", "Cb" and "Cr"; its ball, norm
    and steps are there, in the data's units, and the other coordinates stay. x_adv = clip(x + d) where d adds a
    displacement of Y to R, G and B alike, of Cb (0, -0.344, 1.772) times, of Cr (1.402, -0.714, 0) times. So an
    l-infinity ball of Y is that of RGB less all differences between R, G and B, an l2 length in Y is sqrt(3) times as
    long in RGB, and a step of Cb is up to 1.772 times as long. Clipping to ``bounds`` mixes the channels at the edge
    of the color cube: Y alone never leaves its ball by that; Cb and Cr without Y may, by at most 24%.

    ``distance`` is that of x_adv - x in the coordinates moved. x is (n, 3, h, w), else InputError; further shapes,
    ranges and errors: see Attack. The bounds of ``base`` are not used.
    """

    base: IterativeAttack = PGD()
    channels: tuple[str, ...] = ("Y",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, IterativeAttack):
            self.refuse("base", repr(self.base), "a gradient attack such as PGD()")
        channel_rows(type(self).__name__, self.channels)
        object.__setattr__(self, "guarantee", self.base.guarantee)  # in a ball or of minimum norm, as the base is

    @property
    def rows(self) -> tuple[int, ...]:
        """The positions of the channels in (Y, Cb, Cr)."""
        return channel_rows(type(self).__name__, self.channels)

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.base.measure(rgb_to_ycbcr(delta)[:, self.rows])

    def search(self, model: nn.Module, x: Tensor, goal: Goal, *, seed: int, index: Tensor, **_: Tensor) -> AttackResult:
        check_color(type(self).__name__, x)
        if not isinstance(model, nn.Module):
            raise InputError(f"{type(self).__name__}: the model is {type(model).__name__}; expected a torch module")
        base = replace(self.base, bounds=(0.0, self.bounds[1] - self.bounds[0]))
        if isinstance(base, GradientAttack):
            base = replace(base, ball=_Within(base.ball.eps, base.ball, self.rows))
        seen = _Seen(model, self.rows, self.bounds)
        z = seen.encode(x)
        result = base.search(seen, z, goal, seed=seed, index=index)
        x_adv = (x + ycbcr_to_rgb(result.x_adv - z)).clamp_(*self.bounds)
        distance = self.measure(x_adv - x)
        if self.guarantee == "minimum-norm":
            distance = distance.masked_fill(~result.success, math.inf)
        return replace(result, x_adv=x_adv, distance=distance)
