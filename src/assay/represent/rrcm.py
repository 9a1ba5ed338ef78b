"""rRCM: representations that stay the same along the path from noise to an image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data, noise_levels
from assay.represent.augment import Augmentation
from assay.represent.info_nce import info_nce
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, evaluating
from assay.runtime.random import seeded
from assay.training import Plan, State, fit

Encoder = Callable[[Tensor, Tensor], Tensor]
PairLoss = Callable[[Tensor, Tensor, float], Tensor]
SHARPNESS = 15.0  # of the sigmoid by which the target's decay rises


class RRCMNetwork(nn.Module):
    """``encoder`` and the projection ``head`` of the contrastive term; the consistency term takes no head."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head


def rrcm_loss(
    online: RRCMNetwork,
    target: RRCMNetwork,
    x: Float[Tensor, "n ..."],
    views: tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]],
    levels: Float[Tensor, " m"],
    index: int,
    noise: Float[Tensor, "n ..."],
    *,
    tau: float = 0.2,
    consistency: PairLoss = info_nce,
) -> dict[str, Float[Tensor, ""]]:
    """The terms "contrast" and "consistency", and their sum, "loss" (Lei et al., 2025, arXiv:2501.13094).

    Images in [-1, 1] and one ``noise`` for all. Contrast: each view at the least level against the other view of the
    ``target`` network, both ways, through the heads. Consistency: x at ``levels[index]`` against x at the next lower
    level, representations of the ``online`` network itself, no gradient through the latter. One ``index`` serves the
    whole batch: levels mixed among the negatives would make them easy to tell apart. As in the official code, from
    which it is that consistency takes no head. Raises InputError on fewer than two images, on shapes that differ, and
    on an index outside 0 to m - 2.
    """
    if len(x) < 2 or any(v.shape != x.shape for v in (*views, noise)):
        shapes = [tuple(v.shape) for v in (x, *views, noise)]
        raise InputError(f"rrcm_loss: shapes {shapes}; expected one shape, and at least two images")
    if levels.dim() != 1 or not 0 <= index <= len(levels) - 2:
        raise InputError(f"rrcm_loss: index {index} of {len(levels)} levels; expected 0 to {len(levels) - 2}")

    def at(level: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        sigma = level.to(points)
        return points + sigma * noise.repeat(len(points) // len(x), *[1] * (x.dim() - 1)), sigma.expand(len(points))

    clean = at(levels[-1], torch.cat(views))
    first, second = online.head(online.encoder(*clean)).chunk(2)
    with torch.no_grad():
        first_goal, second_goal = target.head(target.encoder(*clean)).chunk(2)
        next_lower = online.encoder(*at(levels[index + 1], x))
    contrast = info_nce(first, second_goal, tau) + info_nce(second, first_goal, tau)
    agreement = consistency(online.encoder(*at(levels[index], x)), next_lower, tau)
    return {"loss": contrast + agreement, "contrast": contrast, "consistency": agreement}


class _Pair(nn.Module):
    """The online network and its slow average, which is not trained."""

    def __init__(self, online: RRCMNetwork) -> None:
        super().__init__()
        self.online, self.target = online, copy.deepcopy(online).requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class RRCMPretrainer:
    """``fit(encoder, data, *, seed) -> encoder(x, sigma)`` by contrastive denoising, without labels.

    Lei et al., 2025, arXiv:2501.13094, with the schedules of the official code. ``encoder(x, sigma)`` takes images in
    [-1, 1] plus noise of deviation sigma (n,): see NoiseConditionedEncoder; data are brought to [-1, 1] by their
    bounds. At step k of K there are ``count(k, K)`` levels from ``sigma_max`` to ``sigma_min``; the target network
    follows the online one with the decay ``decay(k, K)``. Views are drawn by ``augment`` (which also says whether x is
    mirrored). ``weights`` of contrast and consistency: (1, 0) leaves contrastive learning alone. ``average`` is the
    decay of the weights that are returned (None: the last weights; short runs need it). ``projection`` gives the
    hidden and last width of the head, which has layer norm in place of batch norm. Gradients are clipped throughout,
    the official code begins after the warm-up. Raises InputError for data or options that cannot be used.
    """

    kind: ClassVar[str] = "function"

    projection: tuple[int, int] = (2048, 256)
    tau: float = 0.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    scales: tuple[int, int] = (20, 80)
    ema: tuple[float, float] = (0.99, 0.9999)
    average: float | None = 0.9999
    weights: tuple[float, float] = (1.0, 1.0)
    augment: Augmentation = Augmentation(scale=(0.4, 1.0), jitter=0.0, grayscale=0.0)
    steps: int = 300_000
    batch_size: int = 2048
    lr: float = 1e-4
    warmup: float = 1 / 30
    clip: float = 2.0

    def __post_init__(self) -> None:
        low, high = self.scales
        if not 1 <= low <= high or not 0 <= self.ema[0] < self.ema[1] < 1 or self.batch_size < 2:
            given = f"scales={self.scales}, ema={self.ema}, batch_size={self.batch_size}"
            raise InputError(f"RRCMPretrainer: {given}; expected 1 <= low <= high, 0 <= start < end < 1, batches >= 2")
        if min(self.projection) < 1 or min(self.weights) < 0 or not 0 < self.tau < math.inf:
            given = f"projection={self.projection}, weights={self.weights}, tau={self.tau}"
            raise InputError(f"RRCMPretrainer: {given}; expected widths >= 1, weights >= 0, tau > 0")
        noise_levels(2, self.sigma_min, self.sigma_max, self.rho)

    def count(self, step: int, total: int) -> int:
        """min(low 2^ceil(k / K'), high) + 1 levels, K' = ceil(K / log2(ceil(high / low) + 1))."""
        low, high = self.scales
        stage = math.ceil(total / math.log2(math.ceil(high / low) + 1))
        return int(min(low * 2 ** math.ceil(step / stage), high)) + 1

    def decay(self, step: int, total: int) -> float:
        """From the start of ``ema`` to its end, by a sigmoid of a decay whose square grows evenly."""
        start, end = self.ema
        even = math.sqrt(min(step / total, 1.0) * (end**2 - start**2) + start**2)
        share = 2 / (1 + math.exp(-SHARPNESS * (even - start) / (end - start))) - 1
        return share * end + (1 - share) * start

    @property
    def levels(self) -> Float[Tensor, " m"]:
        """The levels at the end of training, on which the encoder is used."""
        return self._levels(self.steps, self.steps)

    def _levels(self, step: int, total: int) -> Tensor:
        return noise_levels(self.count(step, total), self.sigma_min, self.sigma_max, self.rho)

    def fit(self, encoder: nn.Module, data: Data, *, seed: int) -> nn.Module:
        """The trained encoder, in evaluation mode; ``encoder`` is untouched."""
        check_inputs("RRCMPretrainer", data.x, data.y, data.bounds)
        if len(data) < 2 or data.x.dim() != 4:
            raise InputError(f"RRCMPretrainer: x has shape {tuple(data.x.shape)}; expected two or more images")
        plan = Plan(
            steps=self.steps,
            batch_size=min(self.batch_size, len(data)),
            optimizer="adamw",
            lr=self.lr,
            warmup=self.warmup,
            clip=self.clip,
            ema=self.average,
            drop_last=True,
        )
        start = _Pair(RRCMNetwork(encoder, self._head(encoder, data, seed)))
        trained = fit(start, data, self.objective, plan, seed=seed, hooks=(self.follow,))
        if not isinstance(trained, _Pair):
            raise TypeError(f"training gave {type(trained).__name__}")
        return trained.online.encoder

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The weighted loss of one batch."""
        if not isinstance(model, _Pair):
            raise TypeError(f"RRCMPretrainer trains a pair of networks, not a {type(model).__name__}")
        levels = self._levels(state.step, state.total)
        index = int(torch.randint(len(levels) - 1, ()))  # the engine seeds torch's generator for every epoch
        augment = replace(self.augment, bounds=state.data.bounds)
        mirror = replace(augment, scale=(1.0, 1.0), ratio=1.0, rotation=0.0, jitter=0.0, grayscale=0.0, noise=0.0)
        x = mirror(batch.x, state.draws("x", batch.index)) if augment.flip else batch.x
        views = (augment(batch.x, state.draws(name, batch.index)) for name in ("one", "two"))
        low, high = state.data.bounds
        x, one, two = (2 * (v - low) / (high - low) - 1 for v in (x, *views))
        noise = torch.randn(x.shape, dtype=x.dtype).to(x.device)  # the same numbers on every device
        terms = rrcm_loss(
            model.online, model.target, x, (one, two), levels, index, noise, tau=self.tau, consistency=self.agree
        )
        return self.weights[0] * terms["contrast"] + self.weights[1] * terms["consistency"]

    def agree(self, near: Float[Tensor, "n d"], lower: Float[Tensor, "n d"], tau: float) -> Float[Tensor, ""]:
        """What the consistency term asks of representations at adjacent levels."""
        return info_nce(near, lower, tau)

    @torch.no_grad()
    def follow(self, models: Mapping[str, nn.Module], state: State) -> None:
        """Move the target network towards the online one, after each step."""
        pair, decay = models["model"], self.decay(state.step - 1, state.total)
        if not isinstance(pair, _Pair):
            raise TypeError(f"RRCMPretrainer trains a pair of networks, not a {type(pair).__name__}")
        for slow, fast in zip(pair.target.parameters(), pair.online.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)

    def _head(self, encoder: nn.Module, data: Data, seed: int) -> nn.Module:
        """Three linear layers with layer norm and ReLU between them."""
        device = device_of(encoder)
        with evaluating(encoder), torch.no_grad():
            features = encoder(data.x[:2].to(device), torch.ones(2, device=device))
        hidden, last = self.projection
        with seeded(seed, "head"):
            layers: list[nn.Module] = []
            for size in (features.shape[1], hidden):
                layers += [nn.Linear(size, hidden, bias=False), nn.LayerNorm(hidden), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(hidden, last, bias=False)).to(device, features.dtype)
