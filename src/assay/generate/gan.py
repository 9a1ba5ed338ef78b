"""Generative adversarial networks: the losses, a small style-based generator, and the training of a pair."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import torch_rng
from assay.runtime.spec import rebuildable
from assay.training import Plan, State
from assay.training.engine import Hook, Player, fit_players

Penalty = Callable[[nn.Module], Tensor]
REGULARISED_EVERY = 16


def generator_loss(fake: Float[Tensor, "n 1"]) -> Float[Tensor, ""]:
    """Non-saturating: the mean of softplus(-D(G(z))) (Goodfellow et al., 2014, arXiv:1406.2661, section 3)."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Float[Tensor, "n 1"], fake: Float[Tensor, "m 1"]) -> Float[Tensor, ""]:
    """Logistic: the mean of softplus(-D(x)) plus that of softplus(D(G(z)))."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(discriminator: nn.Module, real: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """Mean squared norm of D's gradient at real samples, over 2 (Mescheder et al., 2018, arXiv:1801.04406, eq. 9)."""
    x = real.detach().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1).mean() / 2


class _Styled(nn.Module):
    """A linear layer whose output each style scales, feature by feature."""

    def __init__(self, inputs: int, outputs: int, latent: int) -> None:
        super().__init__()
        self.linear, self.style = nn.Linear(inputs, outputs), nn.Linear(latent, outputs)

    def forward(self, h: Float[Tensor, "n i"], w: Float[Tensor, "n z"]) -> Float[Tensor, "n o"]:
        return F.leaky_relu(self.linear(h) * (1 + self.style(w)), 0.2)


@rebuildable
class StyleGANLike(nn.Module):
    """``generator(z (n, latent)) -> (n, *shape)``: StyleGAN's parts (Karras et al., 2019, arXiv:1812.04948) without
    convolutions.

    A ``mapping`` network gives the style w of a latent z ~ N(0, I); a learned constant goes through ``blocks`` whose
    features w scales; ``to_rgb`` writes the sample. It is without noise inputs and batch statistics.
    """

    def __init__(
        self, latent: int = 32, shape: tuple[int, ...] = (1, 14, 14), width: int = 128, depth: int = 3
    ) -> None:
        super().__init__()
        self.latent, self.shape = latent, shape
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(latent, latent), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*layers)
        self.constant = nn.Parameter(torch.randn(1, width))
        self.blocks = nn.ModuleList(_Styled(width, width, latent) for _ in range(depth))
        self.to_rgb = nn.Linear(width, math.prod(shape))

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n ..."]:
        w, h = self.mapping(z), self.constant.expand(len(z), -1)
        for block in self.blocks:
            h = block(h, w)
        return self.to_rgb(h).reshape(-1, *self.shape)


class GANPair(tuple[nn.Module, nn.Module]):
    """``(generator, discriminator)``; ``optimizers_`` holds the state of each one's Adam, by these names."""

    optimizers_: Mapping[str, Any]

    def __new__(cls, generator: nn.Module, discriminator: nn.Module, optimizers: Mapping[str, Any]) -> GANPair:
        pair = super().__new__(cls, (generator, discriminator))
        pair.optimizers_ = optimizers
        return pair


@dataclass(frozen=True, kw_only=True)
class GANTraining:
    """``fit(generator, discriminator, x, *, seed) -> (G, D)``: trained copies, G as the average of its weights.

    In turn D descends the logistic loss with ``r1`` times the R1 penalty, each 16th step at 16 times the weight, and G
    the non-saturating loss plus ``penalty(G)`` where one is given, by Adam with betas (0, 0.99), as StyleGAN2 does
    (Karras et al., 2020, arXiv:1912.04958); D's rate and betas are scaled by 16 / 17. ``ema`` is the decay of the
    average. ``generator(z (n, latent))`` has the attribute ``latent``; the path-length penalty is left out.
    ``optimizers``, of a pair that was trained before, go on where they were. Raises InputError for x that is empty or
    not finite, values out of range, and a loss that stops being finite.
    """

    kind: ClassVar[str] = "function"

    steps: int = 2000
    batch_size: int = 16
    lr: float = 2e-3
    r1: float = 10.0
    ema: float = 0.5 ** (32 / 10_000)

    def __post_init__(self) -> None:
        if not (self.r1 >= 0 and self.lr > 0 and self.steps >= 0):
            raise InputError(
                f"GANTraining: steps={self.steps}, lr={self.lr}, r1={self.r1}; expected r1, steps >= 0, lr > 0"
            )

    def fit(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        x: Float[Tensor, "n ..."],
        *,
        seed: int,
        penalty: Penalty | None = None,
        hooks: Sequence[Hook] = (),
        optimizers: Mapping[str, Any] | None = None,
    ) -> GANPair:
        """Trained copies of both; what goes in stays as it is."""
        check_inputs("GANTraining", x)
        made: dict[str, torch.optim.Optimizer] = {}
        plans = {
            name: self._plan(ratio, ema, name, optimizers or {}, made)
            for name, ratio, ema in (("discriminator", 16 / 17, None), ("generator", 1.0, self.ema))
        }
        players = {
            "discriminator": Player(model=discriminator, objective=self._discriminator, plan=plans["discriminator"]),
            "generator": Player(model=generator, objective=_against(penalty), plan=plans["generator"]),
        }
        found = fit_players(players, _samples(x), seed=seed, hooks=hooks)
        states = {name: optimizer.state_dict() for name, optimizer in made.items()}
        return GANPair(found["generator"], found["discriminator"], states)

    def _plan(
        self,
        ratio: float,
        ema: float | None,
        name: str,
        before: Mapping[str, Any],
        made: dict[str, torch.optim.Optimizer],
    ) -> Plan:
        """The plan of the player ``name``; its optimiser starts from its state ``before`` and is put into ``made``."""

        def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
            made[name] = torch.optim.Adam(parameters, self.lr * ratio, (0.0, 0.99**ratio))
            if name in before:
                state = copy.deepcopy(before[name]["state"])
                made[name].load_state_dict({"state": state, "param_groups": made[name].state_dict()["param_groups"]})
            return made[name]

        return Plan(
            steps=self.steps, batch_size=self.batch_size, optimizer=adam, schedule="constant", ema=ema, drop_last=True
        )

    def _discriminator(self, models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        judge = models["discriminator"]
        with torch.no_grad():
            fake = models["generator"](_latents(models["generator"], len(batch.x)))
        loss = discriminator_loss(judge(batch.x), judge(fake))
        if self.r1 and state.step % REGULARISED_EVERY == 0:
            loss = loss + REGULARISED_EVERY * self.r1 * r1_penalty(judge, batch.x)
        return loss


def _against(penalty: Penalty | None) -> Callable[[Mapping[str, nn.Module], Batch, State], Tensor]:
    """The generator's objective."""

    def objective(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
        generator = models["generator"]
        loss = generator_loss(models["discriminator"](generator(_latents(generator, len(batch.x)))))
        return loss if penalty is None else loss + penalty(generator)

    return objective


def _latents(generator: nn.Module, n: int) -> Float[Tensor, "n z"]:
    size: int = generator.latent  # type: ignore[assignment]
    return torch.randn(n, size, device=next(generator.parameters()).device)


def _samples(x: Tensor) -> Data:
    bounds = (float(x.min()), float(x.max()))
    return Data(x.detach().float(), torch.zeros(len(x), dtype=torch.int64), ("real", "fake"), bounds, "GAN samples")


@torch.no_grad()
def generated(generator: nn.Module, n: int, *, seed: int) -> Float[Tensor, "n ..."]:
    """``n`` samples of ``generator`` in evaluation mode: the same seed takes the same latents, whatever the weights."""
    size: int = generator.latent  # type: ignore[assignment]
    z = torch.randn(n, size, generator=torch_rng(seed, "latents"))
    device = next(generator.parameters()).device
    with evaluating(generator):
        return torch.cat([generator(part.to(device)).cpu() for part in z.split(1024)])
