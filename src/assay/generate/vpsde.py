"""How far data and noise are mixed at each time of a diffusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError


class Schedule(Protocol):
    """x_t = alpha(t) x + sigma(t) z with z standard normal; t (n,) in (0, 1]."""

    def alpha(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The factor of the data."""

    def sigma(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The deviation of the noise."""


def broadcast(values: Float[Tensor, " n"], like: Float[Tensor, "n ..."]) -> Tensor:
    """One value a sample, shaped and typed to multiply ``like``."""
    return values.to(like).reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True, kw_only=True)
class VPSDE:
    """The variance-preserving diffusion (Song et al., 2021, arXiv:2011.13456, eq. 33) of data in [-1, 1].

    log alpha(t) = -t^2 (beta1 - beta0) / 4 - t beta0 / 2 and sigma = sqrt(1 - alpha^2), in float64, t in (0, 1].
    InputError unless 0 < beta0 <= beta1.
    """

    kind: ClassVar[str] = "function"

    beta0: float = 0.1
    beta1: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta0 <= self.beta1 < math.inf:
            raise InputError(f"VPSDE: beta0={self.beta0}, beta1={self.beta1}; expected 0 < beta0 <= beta1")

    def log_alpha(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """log alpha(t) <= 0."""
        t = t.double()
        return -t.square() * (self.beta1 - self.beta0) / 4 - t * self.beta0 / 2

    def alpha(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The factor of the data."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The deviation of the noise; about sqrt(beta0 t) near 0, without cancellation."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """The same of a model with ``alphas_bar`` (s,), alpha^2 after each of its s steps; t = k / s is its k-th step."""

    kind: ClassVar[str] = "function"

    alphas_bar: Float[Tensor, " s"]

    def __post_init__(self) -> None:
        a = self.alphas_bar
        if a.dim() != 1 or len(a) == 0 or not bool(((a > 0) & (a < 1)).all()):
            raise InputError(f"DiscreteSchedule: alphas_bar of shape {tuple(a.shape)}; expected (s,) within (0, 1)")

    def step(self, t: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The position of the step nearest to ``t``, from 0."""
        return ((t.double() * len(self.alphas_bar)).round().long() - 1).clamp(0, len(self.alphas_bar) - 1)

    def alpha(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The factor of the data."""
        return self.alphas_bar.to(t.device)[self.step(t)].double().sqrt()

    def sigma(self, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The deviation of the noise."""
        return (1 - self.alphas_bar.to(t.device)[self.step(t)].double()).sqrt()
