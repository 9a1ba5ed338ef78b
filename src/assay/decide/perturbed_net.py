"""A network whose prediction is shifted by random signs times the way its weights have come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError, unknown
from assay.runtime.random import torch_rng

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "softplus": nn.functional.softplus}
_BYTES = (1 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).astype(np.float32)


class Linearised(NamedTuple):
    """f and the factors of its gradient: for layer l it is the outer product of ``inputs[l]`` and ``deltas[l]``.

    value (b, n); inputs (b, n, d_l) and deltas (b, n, m_l) a layer; arm (b, n): the first layer's block, if any.
    """

    value: Tensor
    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    arm: Tensor | None


def rademacher(rngs: Sequence[np.random.Generator], copies: int, size: int) -> Float[Tensor, "b copies size"]:
    """Independent signs, +1 or -1, from one random bit each; one generator a lane."""
    width = -(-size // 8)
    signs = np.empty((len(rngs), copies * width, 8), np.float32)
    for lane, rng in zip(signs, rngs, strict=True):
        np.take(_BYTES, np.frombuffer(rng.bytes(copies * width), np.uint8), axis=0, out=lane, mode="clip")
    return torch.from_numpy(signs.reshape(len(rngs), copies, 8 * width)[:, :, :size])


class PerturbedNet(nn.Module):
    """f~(theta; x, e) = f(theta; x) + c_p sum_j (theta - theta_0)_j e_j / m^(1/4) (Deb et al., 2023, arXiv:2312.07145).

    f(theta; x) = v phi(W_L ... phi(W_1 x)), ``depth`` L hidden layers of ``width`` m, no biases, v of norm 1. With
    ``scaling="theory"`` W ~ N(0, s0^2) and every layer but the first is divided by sqrt(m); "standard" has
    W ~ N(0, s0^2 / m) and no divisor: with ReLU the same function, whose hidden layers learn m times as fast. Depth 0
    is the linear model from zero. One network for each of the b seeds, held as vectors: ``theta`` (b, p), and theta_0
    as a buffer.

    Inputs are (b, n, D); or (b, d) with D = dK, every block placement of one vector, n = K; or (b, n, d) with the block
    of each in ``arm`` (b, n): blocks slice the first layer's weights and are never laid out. x_{t,a} of all arms share
    their signs, so that gaps between arms carry no noise.
    """

    theta_0: Tensor

    def __init__(
        self,
        features: int,
        *,
        width: int = 100,
        depth: int = 2,
        c_p: float = 0.1,
        s0: float = math.sqrt(2),
        activation: Literal["relu", "tanh", "softplus"] = "relu",
        scaling: Literal["standard", "theory"] = "standard",
        seeds: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        if features < 1 or width < 1 or depth < 0 or len(seeds) == 0:
            raise InputError(f"PerturbedNet: features={features}, width={width}, depth={depth}; expected >= 1, 1, 0")
        if not (c_p >= 0 and math.isfinite(c_p) and s0 > 0):
            raise InputError(f"PerturbedNet: c_p={c_p}, s0={s0}; expected c_p >= 0 and s0 > 0")
        if activation not in ACTIVATIONS:
            raise unknown("activation of PerturbedNet", activation, ACTIVATIONS)
        if scaling not in ("standard", "theory"):
            raise unknown("scaling of PerturbedNet", scaling, ("standard", "theory"))
        self.features, self.width, self.depth, self.c_p, self.activation = features, width, depth, c_p, activation
        widths = (features, *[width] * depth, 1)
        self.shapes = tuple(pairwise(widths))
        theory = scaling == "theory"
        self.factors = tuple(width**-0.5 if theory and k > 0 else 1.0 for k in range(depth + 1))
        std = s0 if theory else s0 * width**-0.5
        self.theta = nn.Parameter(torch.stack([self._start(torch_rng(s, "net"), std) for s in seeds]))
        self.register_buffer("theta_0", self.theta.detach().clone())

    def _start(self, generator: torch.Generator, std: float) -> Float[Tensor, " p"]:
        if self.depth == 0:
            return torch.zeros(self.features)
        hidden = [std * torch.randn(math.prod(s), generator=generator) for s in self.shapes[:-1]]
        v = torch.randn(self.width, generator=generator)
        return torch.cat([*hidden, v / v.norm()])

    def layers(self, vector: Float[Tensor, "b p"]) -> list[Tensor]:
        """A vector of parameters as views (b, d_l, m_l), one a layer."""
        sizes = [math.prod(s) for s in self.shapes]
        return [v.unflatten(1, s) for v, s in zip(vector.split(sizes, 1), self.shapes, strict=True)]

    def linearise(self, x: Tensor, arm: Int[Tensor, "b n"] | None = None, theta: Tensor | None = None) -> Linearised:
        """f and the factors of its gradient at ``theta`` (absent: the present one)."""
        weights = self.layers(self.theta if theta is None else theta)
        inputs, h = [x], x
        for k, (w, factor) in enumerate(zip(weights, self.factors, strict=True)):
            h = factor * (_first(w, x, arm) if k == 0 else h @ w)
            if k < self.depth:
                h = ACTIVATIONS[self.activation](h)
                inputs.append(h)
        delta = torch.full_like(h, self.factors[-1])
        deltas = [delta]
        for k in range(self.depth, 0, -1):
            delta = self.factors[k - 1] * self._slope(inputs[k]) * (delta @ weights[k].mT)
            deltas.insert(0, delta)
        return Linearised(h[..., 0], tuple(inputs), tuple(deltas), arm)

    def _slope(self, h: Tensor) -> Tensor:
        """The activation's derivative, from its value."""
        if self.activation == "relu":
            return (h > 0).to(h.dtype)
        return 1 - h * h if self.activation == "tanh" else 1 - torch.exp(-h)

    def forward(self, x: Tensor, arm: Int[Tensor, "b n"] | None = None) -> Float[Tensor, "b n"]:
        """f(theta; x), unperturbed."""
        return self.linearise(x, arm).value

    def gradients(self, at: Linearised) -> Float[Tensor, "b n p"]:
        """The gradient of f in theta for every input."""
        b, n = at.value.shape
        parts = []
        for k, (x, delta) in enumerate(zip(at.inputs, at.deltas, strict=True)):
            if k == 0 and (x.dim() == 2 or at.arm is not None):
                parts.append(self._scattered(x, delta, at.arm))
            else:
                parts.append((x[..., :, None] * delta[..., None, :]).reshape(b, n, -1))
        return torch.cat(parts, 2)

    def _scattered(self, x: Tensor, delta: Tensor, arm: Tensor | None) -> Float[Tensor, "b n q"]:
        b, n, m = delta.shape
        d = x.shape[-1]
        block = torch.arange(n).expand(b, n) if arm is None else arm
        rows = x[:, None].expand(b, n, d) if x.dim() == 2 else x
        whole = delta.new_zeros(b, n, self.features // d, d, m)
        whole[torch.arange(b)[:, None], torch.arange(n), block] = rows[..., :, None] * delta[..., None, :]
        return whole.reshape(b, n, -1)

    def quadratic(self, at: Linearised, scale: Float[Tensor, "b p"]) -> Float[Tensor, "b n"]:
        """sum_j scale_j (df / d theta_j)^2 for every input, without laying the gradients out."""
        total = torch.zeros_like(at.value)
        for k, (x, delta, s) in enumerate(zip(at.inputs, at.deltas, self.layers(scale), strict=True)):
            total = total + ((_first(s, x**2, at.arm) if k == 0 else x**2 @ s) * delta**2).sum(-1)
        return total

    @property
    def strength(self) -> float:
        """c_p / m^(1/4)."""
        return self.c_p * self.width**-0.25

    def shift(self, signs: Float[Tensor, "b s p"]) -> Float[Tensor, "b s"]:
        """What the signs add to every prediction: c_p <theta - theta_0, e_s> / m^(1/4)."""
        return self.strength * (signs @ (self.theta - self.theta_0)[..., None])[..., 0]

    def perturbed(
        self, x: Tensor, signs: Float[Tensor, "b s p"], arm: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n s"]:
        """f~(theta; x, e_s) for every input and copy of the signs."""
        return self(x, arm)[..., None] + self.shift(signs)[:, None]


def _first(w: Float[Tensor, "b D m"], x: Tensor, arm: Tensor | None) -> Float[Tensor, "b n m"]:
    """x w for dense inputs; for blocks, the rows of ``w`` that each block meets."""
    if x.dim() == 3 and arm is None:
        return x @ w
    blocks = w.unflatten(1, (-1, x.shape[-1]))
    if arm is None:
        return (x[:, None, None] @ blocks)[:, :, 0]
    return (x[:, :, None] @ blocks[torch.arange(len(w))[:, None], arm])[:, :, 0]
