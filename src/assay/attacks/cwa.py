"""The common weakness attack: flat points that are close to the optimum of every surrogate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.fft import dct
from torch import Tensor, nn

from assay.attacks.balls import L2
from assay.attacks.base import Goal
from assay.attacks.engine import Climb
from assay.attacks.ensemble import EnsembleAttack, members
from assay.attacks.tifgsm import smooth
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws

BASES = ("mi", "adam", "vmi", "ssa")
PIXELS = 3 * 224 * 224  # of the images that the official inner step lengths are for
COPIES, AROUND = 20, 1.5  # of vmi: points, and how far around in eps; ssa takes as many
RHO = 0.5  # of ssa: how far the factors of the spectrum are from 1
BETAS, FLOOR, RATE = (0.9, 0.999), 1e-8, 1e-3  # of adam


@dataclass(frozen=True, kw_only=True)
class CWA(EnsembleAttack):
    """MI-CWA and its variants (Chen et al., 2023, arXiv:2303.09105, algorithm 1; constants of the official code).

    Each step starts from x and goes a ``reverse_step`` down the gradient of the ensemble. From there it passes over the
    surrogates in order: m = ``momentum`` m + g / ||g||_2 with the gradient g of one surrogate where the one before
    left the point, which moves by b m and is cut to the ball. The whole displacement is the gradient of the outer step
    from x, by MIFGSM: per sample over its l1 norm (the official code divides by that of the batch). As every
    surrogate sees what the ones before did, it holds a term along the gradient of the surrogates' pairwise similarity.
    m lives on over steps.

    ``inner_step`` b, in the data's units; None: 250 sqrt(d / 150528) for d numbers a sample, the official 250 at
    224 x 224. It is so long that most pixels reach the edge of the ball. ``base`` is "mi"; "adam", whose outer step is
    Adam's at rate 1e-3 (or at the length of ``step_size``); "vmi", whose g is the mean over 20 points up to 1.5 eps
    away: that is the variance-tuned gradient of Wang and He (2021, arXiv:2103.15571) with the variance of this point;
    or "ssa", whose g is the mean over 20 random changes of the spectrum (Long et al., 2022, arXiv:2207.05382).
    ``di`` crops that share of the image padded by zeros at a random place before each inner gradient (official: 0.9);
    ``ti`` smooths all gradients by a kernel of that odd side, three deviations wide (official: 15). Both and "ssa" take
    images (n, c, h, w). Shapes, ranges and errors: see EnsembleAttack.
    """

    reach: ClassVar[float] = 250.0

    reverse_step: float = 1 / 15
    inner_step: float | None = None
    base: Literal["mi", "adam", "vmi", "ssa"] = "mi"
    di: float | None = None
    ti: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in BASES:
            raise unknown(f"base of {type(self).__name__}", self.base, BASES)
        if self.inner_step is not None and not (math.isfinite(self.inner_step) and self.inner_step > 0):
            self.refuse("inner_step", self.inner_step, "a length above 0")
        if self.di is not None and not 0 < self.di <= 1:
            self.refuse("di", self.di, "a share of the image in (0, 1]")
        if self.ti is not None and (self.ti < 1 or self.ti % 2 == 0):
            self.refuse("ti", self.ti, "an odd number of pixels")

    def length(self, step: int) -> float:
        return RATE if self.base == "adam" and self.step_size is None else super().length(step)

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        """As GradientAttack; no gradient where no reverse step uses it."""
        if not self.reverse_step:
            return level.detach(), torch.zeros_like(z), 0
        level, grad, passes = super().slope(level, logits, z, goal)
        return level, self.smoothed(grad), passes

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        run.grad = self.sweep(run, self.behind(run)) - run.z
        return self.adam(run) if self.base == "adam" else super().move(run)

    def order(self, model: nn.Module) -> list[nn.Module]:
        """The surrogates as the inner pass takes them."""
        return members(model)

    def sweep(self, run: Climb, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Where the inner pass over the surrogates from ``z`` ends."""
        m = run.memory.get("m", torch.zeros_like(z))
        for model in self.order(run.model):
            m = self.momentum * m + self.unit(run, z, model)
            z = self.ball.project(z + self.inner_length(z) * m, run.x, self.bounds)
        run.memory["m"] = m
        return z

    def inner_length(self, z: Float[Tensor, "n ..."]) -> float:
        """The length b of an inner step."""
        return self.reach * math.sqrt(z[0].numel() / PIXELS) if self.inner_step is None else self.inner_step

    def unit(self, run: Climb, z: Float[Tensor, "n ..."], model: nn.Module) -> Float[Tensor, "n ..."]:
        """One surrogate's gradient over its l2 norm, sample by sample (0 where it is 0)."""
        return L2(1.0).ascent(self.smoothed(self.pull(run, z, model)), z, self.bounds)

    def pull(self, run: Climb, z: Float[Tensor, "n ..."], model: nn.Module) -> Float[Tensor, "n ..."]:
        """One surrogate's gradient at ``z``, as ``base`` and ``di`` have it."""
        if self.di is not None:
            model = nn.Sequential(Crop(self.di, run.draws), model)
        if self.base not in ("vmi", "ssa"):
            return run.gradient(z, model)
        copy = self.neighbour if self.base == "vmi" else self.simulated
        total = torch.zeros_like(z)
        for _ in range(COPIES):
            total += run.gradient(copy(z, run.draws), model)
        return total / COPIES

    def neighbour(self, z: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        """A point uniform in the cube of 1.5 eps around."""
        return z + AROUND * self.ball.eps * (2 * draws.uniform(*z.shape[1:]).to(z) - 1)

    def simulated(self, z: Float[Tensor, "n c h w"], draws: Draws) -> Float[Tensor, "n c h w"]:
        """``z`` with normal noise of deviation eps, each number of its cosine transform times one in 1 +- RHO."""
        need_images(type(self).__name__, z)
        rows, columns = (cosines(side).to(z) for side in z.shape[2:])
        noisy = z + self.ball.eps * draws.normal(*z.shape[1:]).to(z)
        factors = 1 + RHO * (2 * draws.uniform(*z.shape[1:]).to(z) - 1)
        return rows.T @ (factors * (rows @ noisy @ columns.T)) @ columns

    def smoothed(self, grad: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The gradient after ``ti``."""
        return grad if self.ti is None else smooth(grad, self.ti, max(self.ti - 1, 1) / 6)

    def adam(self, run: Climb) -> Float[Tensor, "n ..."]:
        """Adam's step up the displacement (Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1)."""
        memory, zero, moments = run.memory, torch.zeros_like(run.z), []
        for power, beta in enumerate(BETAS, 1):
            name = f"moment {power}"
            memory[name] = beta * memory.get(name, zero) + (1 - beta) * run.grad**power
            moments.append(memory[name] / (1 - beta ** (run.step + 1)))
        z = run.z + self.length(run.step) * moments[0] / (moments[1].sqrt() + FLOOR)
        return self.ball.project(z, run.x, self.bounds)


class Crop(nn.Module):
    """A random window of images padded by zeros, at their own scale in a frame of zeros of the old size.

    The window's sides are ``share`` of the image's, and the padding on each side what is left.
    """

    def __init__(self, share: float, draws: Draws) -> None:
        super().__init__()
        self.share, self.draws = share, draws

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        need_images("di", x)
        sides = [max(int(self.share * side), 1) for side in x.shape[2:]]
        top, left = (whole - side for whole, side in zip(x.shape[2:], sides, strict=True))
        padded = F.pad(x, (left, left, top, top))
        rows, columns = (
            self.draws.integers(3 * pad + 1, 1).to(x.device) + torch.arange(side, device=x.device)
            for pad, side in zip((top, left), sides, strict=True)
        )
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        window = padded.movedim(1, 3)[sample, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
        return F.pad(window, (left // 2, left - left // 2, top // 2, top - top // 2))


def need_images(where: str, x: Tensor) -> None:
    """Raise InputError unless ``x`` is (n, c, h, w)."""
    if x.dim() != 4:
        raise InputError(f"{where}: a sample has shape {tuple(x.shape[1:])}; expected an image (c, h, w)")


def cosines(side: int) -> Float[Tensor, "side side"]:
    """The orthonormal cosine transform (DCT-II) of signals of length ``side``, a row a frequency, float64."""
    return torch.from_numpy(dct(torch.eye(side, dtype=torch.float64).numpy(), norm="ortho", axis=0))
