"""Early-learning regularisation with two networks, weight averages and mixup."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from assay.data import Batch, Data
from assay.labels.elr import ELR, rampup
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng, torch_rng
from assay.runtime.spec import rebuildable
from assay.subject import fresh
from assay.training import Player, State, fit_players

OTHER = {"first": "second", "second": "first"}


@rebuildable
class MeanLogits(nn.Module):
    """The mean of two networks' logits (n, c)."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return (self.first(x) + self.second(x)) / 2


@dataclass(frozen=True, kw_only=True)
class ELRPlus(ELR):
    """ELR whose targets come from a second network (Liu et al., 2020, arXiv:2007.00151, section 4.3, "ELR+").

    Two networks, the first from the model's weights and the second from fresh ones, learn from the same batches. Each
    minimises ELR on mixed inputs lambda x + (1 - lambda) x', lambda ~ max(Beta(``mixup``, ``mixup``), its complement),
    against labels and targets mixed alike. A sample's target is the running average of the softmax that the *other*
    network's weight average gives the unmixed input. The averages' decay is ``average`` x rampup(step + 1,
    ``average_steps``); the term's weight is ``strength`` x rampup(step, ``strength_steps``), steps counted from 1.
    ``sharpen`` multiplies mixed labels by their targets and divides by the sum (the authors: for 100 classes).
    ``fit`` returns the two networks' mean logits.

    Defaults are the authors' for CIFAR-10 under symmetric noise. Where their code trains one network for an epoch and
    then the other, each step here trains both; as there on one device, an average is read as it stands at that step,
    in training mode. Memory: 2 n c floats and one more copy of both networks. Raises InputError as ELR does.
    """

    mixup: float = 1.0
    average: float = 0.997
    average_steps: int = 40_000
    sharpen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.mixup) and self.mixup > 0) or not 0 <= self.average < 1:
            raise InputError(f"ELR+: mixup={self.mixup}, average={self.average}; expected mixup > 0, average in [0, 1)")
        if self.average_steps < 0:
            raise InputError(f"ELR+: average_steps={self.average_steps}; expected a number of steps >= 0")

    def mixed(self, name: str, n: int, state: State) -> tuple[float, Int[Tensor, " n"]]:
        """lambda in [1/2, 1] and the partner of each of ``n`` samples, for the network ``name`` at this step."""
        drawn = float(numpy_rng(state.seed, "elr+", name, state.step).beta(self.mixup, self.mixup))
        partner = torch.randperm(n, generator=torch_rng(state.seed, "elr+", name, state.step))
        return max(drawn, 1 - drawn), partner

    def targets(self, name: str, models: Mapping[str, nn.Module], batch: Batch, state: State) -> Float[Tensor, "b c"]:
        """The running averages of what the other network's weight average predicts, moved by this batch."""
        other = OTHER[name]
        averages = {n: _averages(n, m, state) for n, m in models.items()}  # both, before either network moves
        with torch.no_grad():
            p = functional_call(models[other], averages[other], (batch.x,)).softmax(1)
        return state.ema(f"elr+/{name}", batch.index, p, self.beta)

    def loss(self, name: str, models: Mapping[str, nn.Module], batch: Batch, state: State) -> Float[Tensor, ""]:
        """The objective of one of the two networks."""
        target = self.targets(name, models, batch, state)
        share, partner = self.mixed(name, len(batch.y), state)
        x = share * batch.x + (1 - share) * batch.x[partner]
        logits = models[name](x)
        self.check_logits(logits, batch, state)
        target = share * target + (1 - share) * target[partner]
        y = F.one_hot(batch.y, logits.shape[1]).to(logits.dtype)
        y = share * y + (1 - share) * y[partner]
        if self.sharpen:
            y = F.normalize(y * target, p=1, dim=1)
        return F.cross_entropy(logits, y) + rampup(state.step + 1, self.strength_steps) * self.penalty(logits, target)

    @torch.no_grad()
    def follow(self, models: Mapping[str, nn.Module], state: State) -> None:
        """Move the weight averages towards the networks, after a step."""
        decay = self.average * rampup(state.step + 1, self.average_steps)
        for name, model in models.items():
            held = _averages(name, model, state)
            for key, parameter in model.named_parameters():
                held[key].lerp_(parameter, 1 - decay)

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        self.check_names(data)
        starts = {"first": model, "second": fresh(model, seed=seed)}
        players = {
            name: Player(model=start, objective=partial(self.loss, name), plan=self.plan())
            for name, start in starts.items()
        }
        hooks = [self.follow, *options.pop("hooks", ())]
        return MeanLogits(**fit_players(players, data, seed=seed, hooks=hooks, **options)).eval()


def _averages(name: str, model: nn.Module, state: State) -> dict[str, Tensor]:
    """The weight average of a network by parameter and buffer, of tied ones once; it lives in the state, so that a
    checkpoint holds it."""
    stem = f"elr+/average/{name}/"
    single = {key for key, _ in (*model.named_parameters(), *model.named_buffers())}
    own = {key: value for key, value in model.state_dict().items() if key in single}
    for key, value in own.items():
        if stem + key not in state.memory:
            state.memory[stem + key] = value.detach().clone()
    return {key: state.memory[stem + key] for key in own}
