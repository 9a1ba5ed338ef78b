"""PFGM++: data as charges in N + D dimensions, and their electric field followed back from far away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.generate.base import FittedGenerator, Generator
from assay.generate.denoiser import DenoiserMLP
from assay.generate.edm import EDMPrecond, Perturb, edm_sampler, edm_sigmas
from assay.generate.poisson import PerturbationKernel
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, batched, device_of, evaluating
from assay.runtime.random import seeded, torch_rng
from assay.training import Plan, State, fit

VE_RANGE = (0.02, 100.0)
VP_BETA, VP_FIRST = (19.9, 0.1), 1e-5


@dataclass(frozen=True, kw_only=True)
class PFGMPP(Generator["FittedPFGMPP"]):
    """PFGM++ (Xu et al., 2023, arXiv:2302.04265, sections 3 and 4), trained and sampled as EDM is.

    The network learns E[y | x] under the kernel of ``D`` extra dimensions (see PerturbationKernel: 1 is PFGM, inf is
    EDM diffusion, 2048 and 128 the paper's for CIFAR-10 and FFHQ) by regression on y itself, w(sigma) |D(x, sigma) -
    y|^2, which needs no large batch; ``reference`` > 0 replaces y by its posterior mean over that many training samples
    (the batch among them; those of its class where the network is ``conditional``), the stable target. Data are scaled
    to [-1, 1].

    ``net(x (n, *shape), c_noise (n,), labels)``; absent: a DenoiserMLP. It is never changed. ``noise`` is the law of
    sigma and its weight w: "edm" has ln sigma ~ N(``p_mean``, ``p_std``^2) and w = (sigma^2 + d^2) / (sigma d)^2 with d
    = ``sigma_data``; "ve" a log-uniform sigma in [0.02, 100] and "vp" that of the variance-preserving schedule (19.9,
    0.1), both with w = 1 / sigma^2; the preconditioning is EDM's for all. ``conditional`` gives the labels to the
    network. ``clip``: see PerturbationKernel. ``steps`` to ``ema`` plan the training of small images; the
    others are the sampler's (see edm_sampler). Raises InputError for values out of range.
    """

    net: nn.Module | None = None
    D: float = 2048.0
    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    noise: Literal["edm", "ve", "vp"] = "edm"
    reference: int = 0
    conditional: bool = False
    clip: float | None = None

    steps: int = 4000
    batch_size: int = 64
    lr: float = 1e-3
    ema: float | None = 0.995

    sampling_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        self.kernel(1)
        edm_sigmas(self.sampling_steps, self.sigma_min, self.sigma_max, self.rho)
        if self.noise not in ("edm", "ve", "vp"):
            raise unknown("noise", str(self.noise), ("edm", "ve", "vp"))
        if not (self.sigma_data > 0 and self.p_std > 0 and self.reference >= 0):
            given = f"sigma_data={self.sigma_data}, p_std={self.p_std}, reference={self.reference}"
            raise InputError(f"PFGMPP: {given}; expected sigma_data > 0, p_std > 0, reference >= 0")

    def kernel(self, size: int) -> PerturbationKernel:
        """The perturbation kernel on ``size`` data dimensions."""
        return PerturbationKernel(size, self.D, self.clip)

    def levels(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``n`` noise levels of training and the weight of each, float64."""
        if self.noise == "edm":
            z = torch.randn(n, dtype=torch.float64, generator=generator)
            sigma = (self.p_mean + self.p_std * z).exp()
            return sigma, (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        if self.noise == "ve":
            sigma = VE_RANGE[0] * (VE_RANGE[1] / VE_RANGE[0]) ** u
        else:
            t = 1 + u * (VP_FIRST - 1)
            sigma = torch.expm1(VP_BETA[0] / 2 * t**2 + VP_BETA[1] * t).sqrt()
        return sigma, sigma**-2

    def regression(
        self,
        denoiser: nn.Module,
        y: Float[Tensor, "n ..."],
        labels: Int[Tensor, " n"] | None,
        generator: torch.Generator,
        reference: Float[Tensor, "m ..."] | None = None,
        reference_labels: Int[Tensor, " m"] | None = None,
    ) -> Float[Tensor, ""]:
        """mean over y of w(sigma) |D(x, sigma) - target|^2, x drawn from the kernel around y (section 3.2).

        The target is y, or its posterior mean over ``reference`` where given, given x and, where the network is given
        ``labels``, the label: over the rows whose ``reference_labels`` are the same, which each label has.
        """
        flat = y.flatten(1)
        kernel = self.kernel(flat.shape[1])
        sigma, weight = (t.to(y.device) for t in self.levels(len(y), generator))
        x = kernel.sample(flat, sigma, generator)
        target = flat
        if reference is not None:
            same = None if labels is None or reference_labels is None else labels[:, None] == reference_labels
            target = kernel.posterior_mean(x, reference.flatten(1), sigma, same).to(y.dtype)
        out = denoiser(x.to(y.dtype).reshape(y.shape), sigma, labels).flatten(1)
        return (weight.to(y.dtype) * (out - target).square().sum(1)).mean()

    def loss(self, y: Float[Tensor, "n ..."], labels: Int[Tensor, " n"] | None = None, *, seed: int = 0) -> Tensor:
        """The objective of ``net`` on clean ``y`` in [-1, 1], a scalar with a gradient, for a loop of one's own.

        With ``reference`` > 0 the stable target is taken over ``y`` itself.
        """
        check_inputs("PFGMPP.loss", y)
        if labels is not None:
            check_labels("PFGMPP.loss", labels, len(y))
        more = y if self.reference else None
        return self.regression(self._start(tuple(y.shape[1:])), y, labels, torch_rng(seed, "pfgmpp"), more, labels)

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch of training."""
        generator = torch_rng(state.seed, "pfgmpp", state.step)
        y, more = _scaled(batch.x, state.data.bounds), None
        labels, classes = batch.y if self.conditional else None, None
        if self.reference:
            rows = torch.randint(len(state.data), (max(self.reference - len(y), 0),), generator=generator)
            more = torch.cat((y, _scaled(state.data.x[rows].to(y.device), state.data.bounds)))
            classes = torch.cat((batch.y, state.data.y[rows].to(y.device)))
        return self.regression(model, y, labels, generator, more, classes)

    def learn(self, data: Data, *, seed: int) -> FittedPFGMPP:
        net = self.net
        if net is None:
            with seeded(seed, "net"):
                net = DenoiserMLP(data.shape, len(data.classes) if self.conditional else 0)
        plan = Plan(
            steps=self.steps, batch_size=self.batch_size, lr=self.lr, ema=self.ema, schedule="cosine", warmup=0.05
        )
        model = fit(EDMPrecond(net, self.sigma_data), data, self.objective, plan, seed=seed)
        classes = len(data.classes) if self.conditional else 0
        return FittedPFGMPP(shape=data.shape, bounds=data.bounds, method=self, model_=model, classes=classes)

    def pretrained(self, shape: tuple[int, ...], *, classes: int = 0) -> FittedPFGMPP:
        """A generator on ``net`` as it is, for samples of ``shape`` in [-1, 1]; ``classes`` > 0 if it has labels."""
        return FittedPFGMPP(shape=shape, bounds=(-1.0, 1.0), method=self, model_=self._start(shape), classes=classes)

    def _start(self, shape: tuple[int, ...]) -> EDMPrecond:
        if self.net is None:
            raise InputError(f"PFGMPP: net is None; expected a network for samples of shape {shape}")
        return EDMPrecond(self.net, self.sigma_data)


@dataclass(kw_only=True)
class FittedPFGMPP(FittedGenerator):
    """A trained PFGM++: ``model_(x, sigma, labels)`` is the denoiser, ``classes`` > 0 where it takes labels."""

    method: PFGMPP
    model_: nn.Module
    classes: int = 0
    batch_size: int = BATCH

    def sample(
        self,
        n: int,
        *,
        seed: int,
        labels: Int[Tensor, " n"] | None = None,
        steps: int | None = None,
        disturbance: float = 0.0,
    ) -> Float[Tensor, "n ..."]:
        """As ``FittedGenerator.sample``, of the given classes (absent, where the network takes labels: drawn evenly).

        ``steps`` >= 2 of the sampler (absent: the method's). ``disturbance`` >= 0 adds that multiple of a draw of the
        kernel to the state before every step, the paper's probe of robustness (section 6.2).
        """
        self.check_count(n)
        return self.finished(self.draw(n, seed=seed, labels=labels, steps=steps, disturbance=disturbance))

    def draw(
        self,
        n: int,
        *,
        seed: int,
        labels: Tensor | None = None,
        steps: int | None = None,
        disturbance: float = 0.0,
    ) -> Float[Tensor, "n ..."]:
        """The field followed from a draw of the prior to the data; for options see ``sample``."""
        if labels is None and self.classes:
            labels = torch.randint(self.classes, (n,), generator=torch_rng(seed, "labels"))
        self._check(n, labels, disturbance)
        method, device = self.method, device_of(self.model_)
        kernel = method.kernel(math.prod(self.shape))

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            given = (x.reshape(n, *self.shape), sigma) if labels is None else (x.reshape(n, *self.shape), sigma, labels)
            return batched(self.model_, *given, batch_size=self.batch_size, device=device).flatten(1)

        start = kernel.prior(n, method.sigma_max, torch_rng(seed, "prior"))
        shake = _disturbing(kernel, disturbance, torch_rng(seed, "disturbance")) if disturbance else None
        with evaluating(self.model_):
            x = edm_sampler(
                denoiser,
                start,
                steps=method.sampling_steps if steps is None else steps,
                sigma_min=method.sigma_min,
                sigma_max=method.sigma_max,
                rho=method.rho,
                perturb=shake,
            )
        low, high = self.bounds
        return low + (high - low) * (x + 1) / 2

    def _check(self, n: int, labels: Tensor | None, disturbance: float) -> None:
        if labels is not None:
            if self.classes == 0:
                raise InputError("FittedPFGMPP.sample: labels are given; expected None, the network takes no labels")
            check_labels("FittedPFGMPP.sample", labels, n, self.classes)
        if not 0 <= disturbance < math.inf:
            raise InputError(f"FittedPFGMPP.sample: disturbance={disturbance}; expected a finite number >= 0")


def _disturbing(kernel: PerturbationKernel, alpha: float, generator: torch.Generator) -> Perturb:
    def perturb(x: Tensor, sigma: Tensor) -> Tensor:
        return x + alpha * kernel.sample(torch.zeros_like(x), sigma, generator)

    return perturb


def _scaled(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """From ``bounds`` to [-1, 1]."""
    return (x - bounds[0]) / (bounds[1] - bounds[0]) * 2 - 1
