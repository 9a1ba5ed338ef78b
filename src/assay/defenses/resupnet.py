"""A network that redraws the luminance of an image from what a frozen classifier sees in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks import FGSM, PGD, Attack, Linf
from assay.data import Batch, Data, rgb_to_ycbcr, ycbcr_to_rgb
from assay.defenses.purifier import InputMap, Purifier
from assay.nets import ResNet
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive, seeded
from assay.runtime.spec import rebuildable
from assay.training import Plan, State, Supervised, fit


class ResidualUpsampling(nn.Module):
    """Two residual blocks, a convolution to ``out`` channels, pixels shuffled into a map ``scale`` times as wide."""

    def __init__(self, channels: int, out: int, scale: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(channels),
            )
            for _ in range(2)
        )
        self.rise = nn.Sequential(
            nn.Conv2d(channels, out, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(out, out * scale**2, 3, 1, 1),
            nn.PixelShuffle(scale),
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.rise(x)


@rebuildable
class ResUpNetMap(InputMap):
    """Images in, the same images with their luminance redrawn out; chrominance is kept where nothing is clipped.

    ``encoder`` is a ResNet whose stages are read, the deepest first; ``stem`` brings the luminance to the deepest
    stage's grid: "unshuffle" moves pixels into channels, "view" is the official code's reshaping of memory to a grid
    one wider, which scrambles space and needs sizes that allow it (224 x 224 with a deepest map of 7 x 7 does).
    """

    differentiable = True

    def __init__(
        self, encoder: ResNet, shape: Sequence[int], stem: str = "unshuffle", bounds: Sequence[float] = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.encoder, self.stem_kind, self.bounds = encoder.eval().requires_grad_(False), stem, tuple(bounds)
        with torch.no_grad():
            maps = self._stages(torch.zeros(1, *shape))
        widths, grid = [m.shape[1] for m in maps], maps[0].shape[2]
        self.grid, side = grid, shape[1]
        self.stem = self._stem(stem, side, grid, widths[0])
        rises, channels = [], 2 * widths[0]
        for skip in widths[1:]:
            rises.append(ResidualUpsampling(channels, skip, 2))
            channels = 2 * skip
        width = widths[-1]
        for _ in range((side // maps[-1].shape[2]).bit_length() - 1):
            rises.append(ResidualUpsampling(channels, width, 2))
            channels, width = width, max(width // 2, 1)
        self.rises = nn.ModuleList(rises)
        self.last = ResidualUpsampling(channels, 1, 1)
        final = self.last.rise[2]
        assert isinstance(final, nn.Conv2d)
        assert final.bias is not None
        nn.init.constant_(final.bias, 0.5)  # grey to begin with: what is cut to the bounds has no slope

    @staticmethod
    def _stem(kind: str, side: int, grid: int, width: int) -> nn.Module:
        if kind == "unshuffle":
            return nn.Sequential(nn.PixelUnshuffle(side // grid), nn.Conv2d((side // grid) ** 2, width, 3, 1, 1))
        if side**2 % (grid + 1) ** 2:
            raise InputError(
                f"ResUpNet: stem 'view' splits {side} x {side} pixels into maps of {grid + 1} x {grid + 1}; expected "
                "sizes that divide, or stem 'unshuffle'"
            )
        return nn.Conv2d(side**2 // (grid + 1) ** 2, width, 2)

    def _stages(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps, one a size, the smallest first."""
        maps: dict[int, Tensor] = {}
        out = self.encoder.stem(x)
        for block in self.encoder.stages:
            out = block(out)
            maps[out.shape[2]] = out
        return [maps[size] for size in sorted(maps)]

    def luminance(self, y: Float[Tensor, "n 1 h w"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """The redrawn luminance of images ``x`` whose own is ``y``."""
        if self.stem_kind == "view":
            y = y.reshape(len(y), -1, self.grid + 1, self.grid + 1)
        out, maps = self.stem(y), self._stages(x)
        for k, rise in enumerate(self.rises):
            out = rise(torch.cat((out, maps[k]), 1) if k < len(maps) else out)
        return self.last(torch.cat((out, maps[-1]), 1) if len(self.rises) < len(maps) else out)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The images with their luminance redrawn, cut to the bounds."""
        low, high = self.bounds
        unit = (x - low) / (high - low)
        if x.shape[1] == 1:
            drawn = self.luminance(unit, x)
        else:
            space = rgb_to_ycbcr(unit)
            drawn = ycbcr_to_rgb(torch.cat((self.luminance(space[:, :1], x), space[:, 1:]), 1))
        return drawn.clamp(0, 1) * (high - low) + low

    def train(self, mode: bool = True) -> ResUpNetMap:
        """The encoder stays as it was trained."""
        super().train(mode)
        self.encoder.eval()
        return self


@dataclass(frozen=True, kw_only=True)
class ResUpNet(Purifier):
    """Redraw the luminance, where perturbations prevail (Pestana et al., 2020, arXiv:2003.00883, section 4).

    The encoder is a classifier trained here on the data; it is not the model that is to be defended. The decoder learns
    to give the luminance of clean images from attacked ones: mean squared error plus ``perceptual`` times that of the
    encoder's features, with uniform noise of size ``noise`` on the luminance that it is shown. The attacked images are
    made against the encoder, by FGSM and PGD at ``eps`` (of the data's range) and half of it; a third are left clean.
    The official code holds the architecture and the noise; losses, epochs and rates are not published and are ours.
    Images (n, c, h, w), c one (then luminance itself) or three, square, a side that is a multiple of 8.
    """

    width: int = 16
    stem: Literal["view", "unshuffle"] = "unshuffle"
    noise: float = 0.005
    eps: float = 8 / 255
    perceptual: float = 0.1
    epochs: int = 3
    encoder_epochs: int = 5
    batch_size: int = 64
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.stem not in ("view", "unshuffle"):
            raise unknown("stem of ResUpNet", str(self.stem), ("view", "unshuffle"))

    def learn(self, data: Data, *, seed: int) -> ResUpNetMap:
        shape = data.shape
        if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2] or shape[1] % 8:
            raise InputError(
                f"ResUpNet: samples have shape {tuple(shape)}; expected square images of 1 or 3 channels, sides a "
                "multiple of 8"
            )
        with seeded(seed, "resupnet"):
            encoder = ResNet((shape[0], shape[1], shape[2]), len(data.classes), self.width, (1, 1, 1, 1))
        plain = Supervised(epochs=self.encoder_epochs, batch_size=self.batch_size)
        trained = plain.fit(encoder, data, seed=derive(seed, "encoder"))
        assert isinstance(trained, ResNet)
        with seeded(seed, "decoder"):
            start = ResUpNetMap(trained, shape, self.stem, data.bounds)
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)
        made = fit(start, data, self._objective, plan, seed=derive(seed, "fit"))
        assert isinstance(made, ResUpNetMap)
        return made

    def _objective(self, net: nn.Module, batch: Batch, state: State) -> Tensor:
        assert isinstance(net, ResUpNetMap)
        unit = state.data.bounds[1] - state.data.bounds[0]
        shown = batch.x.clone()
        for part, attack in enumerate(self._attacks(unit, state.data.bounds)):
            rows = batch.index % 6 == part + 2  # of six images two are shown clean
            if rows.any():
                seed = derive(state.seed, state.step)
                shown[rows] = attack(net.encoder, batch.x[rows], batch.y[rows], seed=seed, index=batch.index[rows])
        noise = unit * self.noise * state.draws("noise", batch.index).uniform(1, *batch.x.shape[2:]).to(batch.x)
        drawn = net((shown + noise).clamp(*state.data.bounds))
        # Chrominance is kept, so that the error of the image is that of its luminance.
        deep, clean = net._stages(drawn)[1], net._stages(batch.x)[1]
        return F.mse_loss(drawn, batch.x) / unit**2 + self.perceptual * F.mse_loss(deep, clean)

    def _attacks(self, unit: float, bounds: tuple[float, float]) -> list[Attack]:
        balls = [Linf(self.eps * unit), Linf(self.eps * unit / 2)]
        pgd = [PGD(ball=ball, bounds=bounds, steps=5, early_stop=False) for ball in balls]
        return [*pgd, *(FGSM(ball=ball, bounds=bounds) for ball in balls)]
