"""A Gaussian posterior over a network's weights, trained on its own PAC-Bayes bound and certified by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from assay.certify.pac_bayes import maurer_bound, monte_carlo_bound
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of, predict
from assay.runtime.random import derive, torch_rng
from assay.subject.subject import fresh
from assay.training import Plan, State, Supervised, fit

Vector = Float[Tensor, " p"]


@dataclass(frozen=True)
class RiskCertificate:
    """What holds for the randomised predictor with probability at least ``confidence``: its true error <= ``bound``.

    ``risk`` is its error on the ``n`` samples, the mean of the drawn networks, ``upper_risk`` the Monte-Carlo upper
    bound on that, and ``kl`` the divergence from the prior in nats.
    """

    bound: float
    risk: float
    upper_risk: float
    kl: float
    n: int
    confidence: float


class Randomised(nn.Module):
    """A network whose weights are drawn anew from N(mean, diag(exp(rho)^2)) at every call in training mode.

    In evaluation mode it runs at the mean. The prior N(prior_mean, prior_deviation^2) is fixed.
    """

    prior_mean: Tensor

    def __init__(self, network: nn.Module, start: Vector, prior_mean: Vector, prior_deviation: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.mean = nn.Parameter(start.clone())
        self.rho = nn.Parameter(torch.full_like(start, math.log(prior_deviation)))
        self.register_buffer("prior_mean", prior_mean.clone())
        self.prior_deviation = prior_deviation

    def weights(self, noise: Vector | None = None) -> Mapping[str, Tensor]:
        """Named weights at mean + deviation * noise (p,), the mean where there is none."""
        flat = self.mean if noise is None else self.mean + self.rho.exp() * noise
        named, parts = dict(self.network.named_parameters()), {}
        for name, piece in zip(named, flat.split([p.numel() for p in named.values()]), strict=True):
            parts[name] = piece.view_as(named[name])
        return parts

    def kl(self) -> Tensor:
        """Divergence of the posterior from the prior, in nats, float64."""
        own = torch.distributions.Normal(self.mean.double(), self.rho.double().exp())
        prior = torch.distributions.Normal(self.prior_mean.double(), self.prior_deviation)
        return torch.distributions.kl_divergence(own, prior).sum()

    def train(self, mode: bool = True) -> Randomised:
        """Training mode draws weights; the layers stay as in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        noise = torch.randn_like(self.mean) if self.training else None
        return functional_call(self.network, dict(self.weights(noise)), (x,))


@dataclass(frozen=True)
class FittedPosterior:
    """The posterior N(``mean_``, diag(``deviation_``^2)) over the flat weights (p,), float32, and what it is judged on.

    ``held_`` are the samples that the prior has not seen: the bound is computed on them.
    """

    method: PACBayesPosterior
    network: Randomised
    held_: Data
    seed: int

    @property
    def mean_(self) -> Vector:
        """The posterior's mean, in the order of the network's parameters."""
        return self.network.mean.detach()

    @property
    def deviation_(self) -> Vector:
        """The posterior's standard deviations."""
        return self.network.rho.detach().exp()

    def sample(self, *, seed: int) -> nn.Module:
        """One network drawn from the posterior, in evaluation mode."""
        drawn = copy.deepcopy(self.network.network)
        noise = torch.randn(len(self.mean_), generator=torch_rng(seed, "posterior")).to(self.mean_)
        drawn.load_state_dict({k: v.detach() for k, v in self.network.weights(noise).items()}, strict=False)
        return drawn

    def risk(self, data: Data, draws: int, *, seed: int) -> float:
        """Mean error on ``data`` of ``draws`` networks drawn from the posterior."""
        wrong = 0
        for k in range(draws):
            wrong += int((predict(self.sample(seed=derive(seed, k)), data.x).argmax(1) != data.y).sum())
        return wrong / (draws * len(data))

    def certificate(self) -> RiskCertificate:
        """The bound on the true error: maurer_bound at the Monte-Carlo bound of the empirical risk."""
        m = self.method
        risk = self.risk(self.held_, m.draws, seed=derive(self.seed, "certificate"))
        upper = float(monte_carlo_bound(risk, m.draws, m.delta_draws))
        kl, n = float(self.network.kl().detach()), len(self.held_)
        bound = float(maurer_bound(upper, kl, n, m.delta))
        return RiskCertificate(bound, risk, upper, kl, n, 1 - m.delta - m.delta_draws)


@dataclass(frozen=True, kw_only=True)
class PACBayesPosterior:
    """Minimise a PAC-Bayes bound over the mean and the deviations of a Gaussian over the weights, and certify it.

    Dziugaite and Roy, 2017, arXiv:1703.11008, with a prior of fixed ``prior_deviation`` (so that no union over scales
    is paid for). ``prior_fraction`` 0 centres the prior at fresh random weights, and the posterior starts at those
    after ``warm_up``, as there. Above 0 the prior is centred at weights that ``warm_up`` gave on that share of the
    data, the posterior starts at it, trains on everything, and the bound is computed on the rest (data-dependent
    priors: Ambroladze et al., 2007; Perez-Ortiz et al., 2021, arXiv:2007.12911). The objective is
    (sqrt(loss + c) + sqrt(c))^2, c = (kl + ln(2 sqrt(n) / delta)) / (2 n) (as there), of cross-entropy whose
    probabilities are cut at ``least`` and that is divided by ln(1 / least). The certificate is about the 0-1 error and
    holds with probability at least 1 - ``delta`` - ``delta_draws`` over samples and ``draws`` weight samples. Only the
    architecture of the given model is used; layers behave as in evaluation mode. Raises InputError on options out of
    range, where fewer than 8 samples are left for the bound, and for ``prior_fraction`` 0 where layers keep statistics
    of the samples (batch norms), which no prior has seen.
    """

    prior_fraction: float = 0.5
    prior_deviation: float = 0.03
    warm_up: Supervised = Supervised(epochs=10)
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    delta: float = 0.025
    delta_draws: float = 0.01
    draws: int = 500
    least: float = 1e-5

    def __post_init__(self) -> None:
        where = "PACBayesPosterior"
        if not 0 <= self.prior_fraction < 1 or not 0 < self.prior_deviation < math.inf:
            raise InputError(
                f"{where}: prior_fraction {self.prior_fraction}, prior_deviation {self.prior_deviation}; "
                "expected a fraction in [0, 1) and a finite number above 0"
            )
        if not all(0 < d < 1 for d in (self.delta, self.delta_draws, self.least)) or self.delta + self.delta_draws >= 1:
            raise InputError(
                f"{where}: delta {self.delta}, delta_draws {self.delta_draws}, least {self.least}; "
                "expected numbers in (0, 1), the deltas with a sum below 1"
            )
        if self.draws < 1:
            raise InputError(f"{where}: draws is {self.draws}; expected at least 1")

    def fit(self, model: nn.Module, data: Data, *, seed: int) -> FittedPosterior:
        """The posterior over the weights of ``model``'s architecture; model and data are untouched."""
        where = type(self).__name__
        check_inputs(where, data.x, data.y, data.bounds)
        check_labels(where, data.y, len(data), len(data.classes))
        net = fresh(model, seed=seed).to(device_of(model)).requires_grad_(True)
        shown, held = data.split(self.prior_fraction, seed=seed) if self.prior_fraction else (data, data)
        if len(held) < 8:
            raise InputError(f"{where}: {len(held)} samples are left for the bound; expected at least 8")
        warm = self.warm_up.fit(net, shown, seed=derive(seed, "warm up"))
        kept = dict(warm.named_buffers())
        moved = [k for k, b in net.named_buffers() if not torch.equal(b, kept[k].to(b))]
        if moved and not self.prior_fraction:
            raise InputError(f"{where}: {moved[0]!r} follows the samples of the bound; expected prior_fraction above 0")
        prior = nn.utils.parameters_to_vector((warm if self.prior_fraction else net).parameters()).detach()
        start = nn.utils.parameters_to_vector(warm.parameters()).detach()
        randomised = Randomised(warm, start, prior, self.prior_deviation)
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)
        budget = math.log(2 * math.sqrt(len(held)) / self.delta)

        def objective(network: nn.Module, batch: Batch, state: State) -> Tensor:
            return self.bound(network, batch, budget, len(held))

        return FittedPosterior(self, fit(randomised, data, objective, plan, seed=seed), held, seed)  # type: ignore[arg-type]

    def bound(self, network: nn.Module, batch: Batch, budget: float, n: int) -> Tensor:
        """The differentiable bound on the mean bounded cross-entropy of one draw of the weights."""
        p = network(batch.x).softmax(1).gather(1, batch.y[:, None])[:, 0].clamp_min(self.least)
        loss = -p.log().mean() / -math.log(self.least)
        c = (network.kl() + budget) / (2 * n)  # type: ignore[operator]
        return ((loss + c).sqrt() + c.sqrt()) ** 2
