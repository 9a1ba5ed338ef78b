"""Where an explanation has to be faithful: the distribution of the noise xi, and how it moves an input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.explain.integrated_gradients import IntegratedGradients
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """A distribution of noise xi over d features around an input x0 (Han et al., 2022, arXiv:2206.01254, section 3).

    ``additive``: the moved input is x0 + xi and the weights of g are in outputs per unit of x; otherwise it is
    baseline + xi (x0 - baseline) and the weights are in outputs ("attribution x input"). A subclass states the noise,
    and where they are not alike the weights of its points. ``intercept`` tells whether g has one; ``anchored`` that g
    must equal f at xi = 0 and xi = 1.
    """

    additive: ClassVar[bool] = False
    intercept: ClassVar[bool] = True
    anchored: ClassVar[bool] = False

    def size(self, n_samples: int, d: int) -> int:
        """How many points an input gets: ``n_samples``, unless the distribution is enumerated."""
        return n_samples

    def noise(self, draws: Draws, k: int, d: int) -> Float[Tensor, "n k d"]:
        """The noise of each sample."""
        raise TypeError(f"{type(self).__name__} states no noise")

    def log_weights(self, xi: Float[Tensor, "n k d"], distance: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Logarithms of the points' weights, up to a constant; ``distance`` is that of the moved input from x0."""
        return torch.zeros_like(distance)

    def move(self, x: Float[Tensor, "n ..."], xi: Float[Tensor, "n k ..."]) -> Float[Tensor, "n k ..."]:
        """The moved inputs; the noise is given for each element."""
        return x[:, None] + xi

    def slope(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """The derivative of what ``respond`` gives by the element's noise, over the derivative of f by the element."""
        return torch.ones_like(x)

    def respond(self, values: Float[Tensor, "n k"], at_x: Float[Tensor, "n 1"]) -> Float[Tensor, "n k"]:
        """What g approximates, from f at the moved inputs and at x0."""
        return values


@dataclass(frozen=True, kw_only=True)
class Gaussian(Neighbourhood):
    """x0 + xi, xi ~ N(0, sigma^2 I): C-LIME and SmoothGrad; sigma = 0 is the limit of vanilla gradients.

    ``sigma`` is in the units of x.
    """

    additive: ClassVar[bool] = True

    sigma: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise InputError(f"Gaussian: sigma={self.sigma}; expected a finite sigma >= 0")

    def noise(self, draws: Draws, k: int, d: int) -> Tensor:
        return self.sigma * draws.normal(k, d)


@dataclass(frozen=True, kw_only=True)
class Multiplicative(Neighbourhood):
    """baseline + xi (x0 - baseline): xi = 1 keeps a feature, xi = 0 sets it to ``baseline``, in the units of x."""

    baseline: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.baseline):
            raise InputError(f"{type(self).__name__}: baseline={self.baseline}; expected a finite number")

    def move(self, x: Tensor, xi: Tensor) -> Tensor:
        return self.baseline + xi * (x - self.baseline)[:, None]

    def slope(self, x: Tensor) -> Tensor:
        return x - self.baseline


@dataclass(frozen=True, kw_only=True)
class Path(Multiplicative):
    """xi = a 1, a ~ U(low, 1): integrated gradients; low = 1 is the limit of gradients x input.

    By quadrature over a with n_samples points (``rule`` of IntegratedGradients, each point under the rule's weight), or
    a drawn at random (``rule="random"``).
    """

    low: float = 0.0
    rule: Literal["gauss-legendre", "riemann-left", "riemann-middle", "riemann-right", "trapezoid", "random"] = (
        "gauss-legendre"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= 1:
            raise InputError(f"Path: low={self.low}; expected a number in [0, 1]")
        if self.rule != "random":
            IntegratedGradients(rule=self.rule)

    def noise(self, draws: Draws, k: int, d: int) -> Tensor:
        n = len(draws.index)
        if self.rule == "random":
            a = draws.uniform(k)
        else:
            nodes, _ = IntegratedGradients(steps=k, rule=self.rule).nodes()
            a = torch.from_numpy(nodes).to(draws.index.device).expand(n, k)
        return (self.low + (1 - self.low) * a)[..., None].expand(n, k, d)

    def log_weights(self, xi: Tensor, distance: Tensor) -> Tensor:
        if self.rule == "random":
            return torch.zeros_like(distance)
        _, weights = IntegratedGradients(steps=xi.shape[1], rule=self.rule).nodes()
        return torch.from_numpy(weights).log().to(distance).expand_as(distance)


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Multiplicative):
    """xi ~ Bernoulli(p)^d: LIME. ``width`` None: all points weigh alike; else exp(-distance^2 / width^2).

    ``distance`` "input": Euclidean, between x0 and the moved input, as in the paper and its code. "mask": the cosine
    distance between xi and 1, and the square root of the kernel, as in the package ``lime``.
    """

    p: float = 0.5
    width: float | None = None
    distance: Literal["input", "mask"] = "input"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < 1 or (self.width is not None and not 0 < self.width < math.inf):
            raise InputError(f"Bernoulli: p={self.p}, width={self.width}; expected 0 < p < 1 and a finite width > 0")
        if self.distance not in ("input", "mask"):
            raise unknown("distance of Bernoulli", self.distance, ("input", "mask"))

    def noise(self, draws: Draws, k: int, d: int) -> Tensor:
        return (draws.uniform(k, d) < self.p).float()

    def log_weights(self, xi: Tensor, distance: Tensor) -> Tensor:
        if self.width is None:
            return torch.zeros_like(distance)
        if self.distance == "input":
            return -((distance / self.width) ** 2)
        cosine = 1 - xi.mean(2).sqrt()  # <xi, 1> / (|xi| |1|) = sqrt(|xi|_0 / d); 0 for the empty mask
        return -((cosine / self.width) ** 2) / 2


@dataclass(frozen=True, kw_only=True)
class Shapley(Multiplicative):
    """xi in {0, 1}^d under the Shapley kernel (d - 1) / (C(d, s) s (d - s)), s = |xi|: KernelSHAP.

    The kernel is infinite at s = 0 and s = d: there g equals f exactly (``anchored``). Up to ``enumerate`` features all
    2^d - 2 other masks are used under their weights; beyond, s is drawn from the kernel's marginal and the mask
    uniformly among those of its size.
    """

    anchored: ClassVar[bool] = True

    enumerate: int = 10

    def size(self, n_samples: int, d: int) -> int:
        return max(2**d - 2, 1) if d <= self.enumerate else n_samples

    def noise(self, draws: Draws, k: int, d: int) -> Tensor:
        device, n = draws.index.device, len(draws.index)
        if d == 1:
            return torch.ones(n, 1, 1, device=device)
        if d <= self.enumerate:
            codes = torch.arange(1, 2**d - 1, device=device)
            return (codes[:, None] >> torch.arange(d, device=device) & 1).float().expand(n, -1, -1)
        s = torch.arange(1, d, device=device)
        marginal = (1 / (s * (d - s))).double()
        sizes = 1 + torch.searchsorted(marginal.cumsum(0) / marginal.sum(), draws.uniform(k).double())
        return (draws.uniform(k, d).argsort(2).argsort(2) < sizes.clamp(max=d - 1)[..., None]).float()

    def log_weights(self, xi: Tensor, distance: Tensor) -> Tensor:
        d = xi.shape[2]
        if d > self.enumerate or d == 1:
            return torch.zeros_like(distance)
        s = xi.sum(2).double()
        log_choose = math.lgamma(d + 1) - torch.lgamma(s + 1) - torch.lgamma(d - s + 1)
        return -(log_choose + s.log() + (d - s).log())


@dataclass(frozen=True, kw_only=True)
class OneHot(Multiplicative):
    """xi one-hot, all d of them, g without intercept: occlusion.

    g approximates the change f(x0) - f(x0 with the feature at its baseline). ``keep`` is the variant of the authors'
    code: g approximates f of the input that keeps the one feature alone, which agrees only where f is additive and zero
    at the baseline.
    """

    intercept: ClassVar[bool] = False

    keep: bool = False

    def size(self, n_samples: int, d: int) -> int:
        return d

    def noise(self, draws: Draws, k: int, d: int) -> Tensor:
        return torch.eye(d, device=draws.index.device).expand(len(draws.index), d, d)

    def move(self, x: Tensor, xi: Tensor) -> Tensor:
        return super().move(x, xi if self.keep else 1 - xi)

    def respond(self, values: Tensor, at_x: Tensor) -> Tensor:
        return values if self.keep else at_x - values
