"""Scores, the gradients of log-densities, of data under noise: from a network that predicts noise, or of a Gaussian."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.generate.vpsde import VPSDE, DiscreteSchedule, Schedule, broadcast
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError


class NoisePrediction(nn.Module):
    """s(x_t, t) = -net(x_t, t) / sigma(t): the score of a network that predicts the noise in x_t.

    ``net(x (n, c, ...), t (n,))`` gives a tensor like x, or an object that holds it as ``sample``; of an output with 2c
    channels, of networks that predict variances too, the first half is the noise.
    """

    def __init__(self, net: nn.Module, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.net = net
        self.schedule: Schedule = VPSDE() if schedule is None else schedule

    def noise(self, x: Float[Tensor, "n ..."], t: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        """The noise that the network sees in ``x``."""
        out: Any = self.net(x, t)
        found: Tensor = getattr(out, "sample", out)
        if found.shape != x.shape and found.dim() == x.dim() and found.shape[1] == 2 * x.shape[1]:
            found = found[:, : x.shape[1]]
        if found.shape != x.shape:
            raise InputError(f"NoisePrediction: the network gives {tuple(found.shape)}; expected {tuple(x.shape)}")
        return found

    def factor(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the noise is multiplied by."""
        return -1 / self.schedule.sigma(t)

    def forward(self, x: Float[Tensor, "n ..."], t: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        """The score at noisy inputs ``x`` of times ``t``."""
        return broadcast(self.factor(t), x) * self.noise(x, t)


class _Stepped(nn.Module):
    """A network that is asked by step and not by time."""

    def __init__(self, net: nn.Module, schedule: DiscreteSchedule) -> None:
        super().__init__()
        self.net, self.schedule = net, schedule

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.net(x, self.schedule.step(t))


def wrap_diffusers(unet: nn.Module, scheduler: Any) -> NoisePrediction:
    """The score of a diffusers network: ``unet(x, step).sample`` is noise, ``scheduler.alphas_cumprod`` its schedule.

    InputError for a scheduler without ``alphas_cumprod``, or one whose network predicts something other than noise.
    """
    bars = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(bars, Tensor):
        raise InputError(f"wrap_diffusers: {type(scheduler).__name__} has no alphas_cumprod; expected a DDPMScheduler")
    predicts = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
    if predicts != "epsilon":
        raise InputError(f"wrap_diffusers: the network predicts {predicts!r}; expected 'epsilon'")
    schedule = DiscreteSchedule(bars)
    return NoisePrediction(_Stepped(unet, schedule), schedule)


class GaussianScore(nn.Module):
    """The exact score of N(``mean``, V diag(``values``) V^T) under noise: -C^-1 (x_t - a mean), C = a^2 Cov + b^2 I.

    ``mean`` (*shape), ``values`` (d,) >= 0, ``vectors`` (d, d) or None for a diagonal covariance. Computed in float64,
    given in the dtype of x. It knows of the data what a Gaussian knows, and needs no training.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor | None

    def __init__(
        self, mean: Tensor, values: Tensor, vectors: Tensor | None = None, schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        if values.shape != (mean.numel(),) or bool((values < 0).any()):
            shape = tuple(values.shape)
            raise InputError(f"GaussianScore: values of shape {shape}; expected ({mean.numel()},), none below 0")
        self.register_buffer("mean", mean.double())
        self.register_buffer("values", values.double())
        self.register_buffer("vectors", None if vectors is None else vectors.double())
        self.schedule: Schedule = VPSDE() if schedule is None else schedule

    @classmethod
    def fit(cls, x: Float[Tensor, "n ..."], schedule: Schedule | None = None) -> GaussianScore:
        """Mean and covariance of ``x``, n >= 2, as they are: units of x are those of the score's inputs."""
        check_inputs("GaussianScore", x)
        if len(x) < 2:
            raise InputError(f"GaussianScore: {len(x)} sample; expected at least 2")
        flat = x.detach().cpu().double().flatten(1)
        values, vectors = torch.linalg.eigh(torch.atleast_2d(flat.T.cov(correction=0)))
        return cls(flat.mean(0).reshape(x.shape[1:]), values.clamp(min=0), vectors, schedule)

    def forward(self, x: Float[Tensor, "n ..."], t: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        """The score at noisy inputs ``x`` of times ``t``."""
        a, b = self.schedule.alpha(t).to(self.mean), self.schedule.sigma(t).to(self.mean)
        offset = (x.double() - broadcast(a, x.double()) * self.mean).flatten(1)
        if self.vectors is not None:
            offset = offset @ self.vectors
        white = offset / (a.square()[:, None] * self.values + b.square()[:, None])
        if self.vectors is not None:
            white = white @ self.vectors.T
        return -white.reshape(x.shape).to(x)
