"""A purifier that takes images back to a camera's RAW and shows them again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.data.isp import SimpleISP, UnprocessISP, shot_and_read_noise
from assay.defenses.camera_networks import LearnedISP, RGBToRawNet
from assay.defenses.purifier import InputMap, Purifier
from assay.runtime.errors import InputError
from assay.runtime.inference import batched
from assay.runtime.random import Draws, derive, seeded, torch_rng
from assay.runtime.spec import rebuildable
from assay.training import Plan, State, fit
from assay.training.engine import Objective

WARMUP, CLIP = 0.1, 0.1  # ours: without them the last ReLU of F may die in the first steps, and short runs are behind


def image_noise(draws: Draws, shape: tuple[int, ...], size: float = 0.1) -> Float[Tensor, "n ..."]:
    """What F is shown on top of images of ``shape``, from the official code: s g with one s ~ N(0, 1) an image and g ~
    N(0, size^2) for each value, so that the level of the noise is random."""
    return draws.normal(*(1,) * len(shape)) * size * draws.normal(*shape)


def edge_error(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], scales: int = 3) -> Float[Tensor, ""]:
    """Mean squared difference of the slopes of two images, summed over halved sizes as far as they go."""
    gap, total = a - b, a.new_zeros(())
    for _ in range(scales):
        if min(gap.shape[2:]) < 2:
            break
        total = total + gap.diff(dim=2).square().mean() + gap.diff(dim=3).square().mean()
        gap = F.avg_pool2d(gap, 2)
    return total


@rebuildable
class RawDefenseMap(InputMap):
    """w G(F(x)) + (1 - w) S(F(x)): ``to_raw`` is F, ``to_rgb`` G, ``isp`` S and ``weight`` w; 1 and 0 are one alone.

    Images (n, c, h, w) with values in ``bounds``. One channel is repeated to three and their mean returned; sizes are
    padded to what the networks divide, by repeating the border, and cut back. Slopes run through F and G; that of S is
    its own, or with ``bpda`` that of luminance: the mean of the four RAW values in every colour.
    """

    def __init__(
        self,
        to_raw: RGBToRawNet,
        to_rgb: LearnedISP,
        isp: SimpleISP,
        weight: float = 0.7,
        bpda: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise InputError(f"RawDefense: weight={weight}; expected a share in [0, 1]")
        self.to_raw, self.to_rgb, self.isp, self.weight = to_raw, to_rgb, isp, weight
        self.bpda, self.bounds = bpda, (bounds[0], bounds[1])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The images that the guessed captures show."""
        return self._through(x, luminance=False)

    def backward_map(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The same, with luminance in the place of S where ``bpda`` asks for it."""
        return self._through(x, luminance=self.bpda)

    def _through(self, x: Tensor, *, luminance: bool) -> Tensor:
        raw = self.to_raw(prepared(x, self.bounds, self.isp.scale))
        shown = raw.new_zeros(())
        if self.weight > 0:
            shown = shown + self.weight * self.to_rgb(raw)
        if self.weight < 1:
            plain = self._luminance(raw) if luminance else self.isp(raw)
            shown = shown + (1 - self.weight) * plain
        shown = shown[..., : x.shape[2], : x.shape[3]]
        low, high = self.bounds
        return low + (high - low) * (shown.mean(1, keepdim=True) if x.shape[1] == 1 else shown)

    def _luminance(self, raw: Float[Tensor, "n 4 a b"]) -> Float[Tensor, "n 3 h w"]:
        light = raw.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return F.interpolate(light, scale_factor=self.isp.scale, mode="nearest")


def prepared(x: Float[Tensor, "n c h w"], bounds: tuple[float, float], scale: int) -> Float[Tensor, "n 3 a b"]:
    """Images in [0, 1] with three channels and sizes that ``2 scale`` divides."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"RawDefense: x has shape {tuple(x.shape)}; expected images (n, c, h, w) of 1 or 3 channels")
    unit = ((x - bounds[0]) / (bounds[1] - bounds[0])).expand(-1, 3, -1, -1)
    right, below = (-x.shape[3] % (2 * scale), -x.shape[2] % (2 * scale))
    return F.pad(unit, (0, right, 0, below), mode="replicate") if right or below else unit


@dataclass(frozen=True, kw_only=True)
class RawDefense(Purifier):
    """Map images to RAW and back (Zhang et al., 2022, arXiv:2112.09219): w G(F(x)) + (1 - w) S(F(x)).

    F and G are trained apart, on natural pairs of images and captures; neither attacks nor the defended model are seen.
    F minimises |F(y) - r|^2 + |F(y + n) - r|^2 with ``image_noise`` n, as in the official code (five convolutions of
    ``width`` maps, 64 there; Adam 1e-3, batches of 32, 100 epochs of 46,839 pairs). G minimises |G(r) - y|^2 plus
    ``edges`` times ``edge_error``, which stands in for the paper's features of VGG-19, which need a download. S is
    ``isp``. The official code evaluates ``weight`` 1, G alone; S, its steps and w = 0.7 are our reading of the paper.

    Data with a field ``raw`` (n, 4, h / scale, w / scale) are pairs; for others ``camera`` captures them, at the scale
    of ``isp``: 1, RAW as large as the images, or 2, half as large. Our options: ``raw_noise`` shows G captures with
    shot noise of that size and the read noise that goes with it (Brooks et al., 2019, arXiv:1811.11127, section 3.1);
    ``cycle`` adds that times |G(F(y)) - y|^2 to the loss of G, F fixed. ``bpda``: see RawDefenseMap.
    """

    weight: float = 0.7
    width: int = 64
    isp_width: int = 24
    noise: float = 0.1
    raw_noise: float = 0.0
    edges: float = 1.0
    cycle: float = 0.0
    isp: SimpleISP = SimpleISP()
    camera: UnprocessISP = UnprocessISP()
    bpda: bool = False
    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"RawDefense: weight={self.weight}; expected a share in [0, 1]")
        sizes = {"noise": self.noise, "raw_noise": self.raw_noise, "edges": self.edges, "cycle": self.cycle}
        for name, value in sizes.items():
            if value < 0:
                raise InputError(f"RawDefense: {name}={value}; expected at least 0")

    def learn(self, data: Data, *, seed: int) -> RawDefenseMap:
        pairs = self.pairs(data)
        to_raw = self.learn_to_raw(pairs, seed=seed)
        to_rgb = self.learn_to_rgb(pairs, to_raw, seed=seed)
        return RawDefenseMap(to_raw, to_rgb, self.isp, self.weight, self.bpda, data.bounds)

    def pairs(self, data: Data) -> Data:
        """Images as F takes them, in [0, 1], with their captures in the field ``raw``."""
        scale = self.isp.scale
        images = prepared(data.x, data.bounds, scale)
        expected = (len(images), 4, images.shape[2] // scale, images.shape[3] // scale)
        raw = data.fields.get("raw")
        if raw is None:

            def captured(x: Tensor, index: Tensor) -> Tensor:
                return self.camera.capture(x, scale=scale, pattern=self.isp.pattern, index=index)

            raw = batched(captured, images, data.index)
        if tuple(raw.shape) != expected:
            raise InputError(f"RawDefense: field 'raw' has shape {tuple(raw.shape)}; expected {expected}")
        return Data(images, data.y, data.classes, name=data.name, index=data.index, fields={"raw": raw})

    def learn_to_raw(self, pairs: Data, *, seed: int) -> RGBToRawNet:
        """F."""
        with seeded(seed, "to raw"):
            start = RGBToRawNet(self.width, self.isp.scale)
        return cast(RGBToRawNet, self._fitted(start, pairs, self._raw_error, derive(seed, "to raw")))

    def learn_to_rgb(self, pairs: Data, to_raw: RGBToRawNet, *, seed: int) -> LearnedISP:
        """G; ``to_raw`` is read only where ``cycle`` is above 0."""

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            loss = self._shown_error(net(self._grainy(batch.fields["raw"], state)), batch.x)
            if self.cycle:
                with torch.no_grad():
                    guessed = to_raw(batch.x)
                loss = loss + self.cycle * F.mse_loss(net(guessed), batch.x)
            return loss

        with seeded(seed, "to rgb"):
            start = LearnedISP(self.isp_width, self.isp.scale)
        return cast(LearnedISP, self._fitted(start, pairs, objective, derive(seed, "to rgb")))

    def _fitted(self, start: nn.Module, pairs: Data, objective: Objective, seed: int) -> nn.Module:
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, warmup=WARMUP, clip=CLIP)
        return fit(start, pairs, objective, plan, seed=seed)

    def shown(self, batch: Batch, state: State) -> Float[Tensor, "n 3 h w"]:
        """The images whose captures F has to guess besides the clean ones: y + n, not clipped."""
        draws = state.draws("image noise", batch.index)
        return batch.x + image_noise(draws, tuple(batch.x.shape[1:]), self.noise).to(batch.x)

    def _raw_error(self, net: nn.Module, batch: Batch, state: State) -> Tensor:
        guessed = net(torch.cat((batch.x, self.shown(batch, state))))
        return 2 * F.mse_loss(guessed, batch.fields["raw"].repeat(2, 1, 1, 1))

    def _shown_error(self, found: Tensor, images: Tensor) -> Tensor:
        return F.mse_loss(found, images) + self.edges * edge_error(found, images)

    def _grainy(self, raw: Tensor, state: State) -> Tensor:
        if not self.raw_noise:
            return raw
        read = math.exp(2.18 * math.log(self.raw_noise) + 1.2)
        generator = torch_rng(state.seed, "raw noise", state.step, device=raw.device)
        return shot_and_read_noise(raw, self.raw_noise, read, generator=generator)
