"""EPS-AD: the score of an input averaged over noise levels, compared with that of natural inputs by a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks import FGSM, L2, Linf, Untargeted
from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.deep_kernel import DeepKernel, DeepKernelMMD
from assay.detect.mmd import median_bandwidth, squared_distances
from assay.generate.score import GaussianScore
from assay.generate.vpsde import VPSDE, Schedule, broadcast
from assay.runtime.checks import check_inputs
from assay.runtime.content import content_draws
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.runtime.random import torch_rng

ScoreFn = Callable[[Tensor, Tensor], Tensor]
OUTSIDE = 1e-3  # how far inputs may lie outside their bounds


def expected_perturbation_score(
    score_fn: ScoreFn,
    x: Float[Tensor, "n ..."],
    T: int = 20,
    *,
    n_steps: int = 1000,
    schedule: Schedule | None = None,
    n_noise: int = 1,
    perturb: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    noise: Float[Tensor, "n k T ..."] | None = None,
    batch_size: int = BATCH,
) -> Float[Tensor, "n ..."]:
    """EPS(x) = (1/T) sum_i s(a_i x + b_i z_i, i / n_steps), i = 1 to T (Zhang et al., 2023, arXiv:2305.16035, def. 1).

    ``x`` lies in ``bounds`` and is scaled to [-1, 1], where the score is defined; ``score_fn(x_t (m, ...), t (m,))``
    gives a tensor like x_t. ``schedule`` has a and b: absent, the score's own where it has one, else VPSDE. Each level
    of each sample has a fresh standard normal z, ``n_noise`` of which are averaged; it follows from the seed and the
    input alone, or is given as ``noise``. Without ``perturb`` the score is taken at x itself. T is 20 for CIFAR-10 and
    50 for ImageNet. The gradient flows. All levels of some samples make one batch of about ``batch_size``. Scores grow
    as 1 / b: the first levels weigh most, as they do in the official code.

    Raises InputError for T outside [1, n_steps], inputs more than 1e-3 outside their bounds, or scores not finite.
    """
    where = "expected_perturbation_score"
    low, high = bounds
    check_inputs(where, x, bounds=(low - OUTSIDE * (high - low), high + OUTSIDE * (high - low)))
    if not 1 <= T <= n_steps or n_noise < 1:
        raise InputError(f"{where}: T={T}, n_noise={n_noise}; expected 1 <= T <= {n_steps} (n_steps), n_noise >= 1")
    if noise is not None and noise.shape != (len(x), n_noise, T, *x.shape[1:]):
        raise InputError(f"{where}: noise of shape {tuple(noise.shape)}; expected {(len(x), n_noise, T, *x.shape[1:])}")
    own = getattr(score_fn, "schedule", None) if schedule is None else schedule
    levels = _Levels(score_fn, VPSDE() if own is None else own, T, n_steps, n_noise, perturb, seed)
    scaled = (x - low) / (high - low) * 2 - 1
    rows = max(batch_size // (T * n_noise), 1)
    parts = []
    for k in range(0, len(x), rows):
        given = None if noise is None else noise[k : k + rows]
        parts.append(levels.mean(scaled[k : k + rows], given))
    found = torch.cat(parts)
    if not torch.isfinite(found).all():
        bad = int((~torch.isfinite(found)).flatten(1).any(1).sum())
        raise InputError(f"{where}: the scores of {bad} of {len(x)} inputs are not finite; expected finite")
    return found


@dataclass(frozen=True)
class _Levels:
    score_fn: ScoreFn
    schedule: Schedule
    T: int
    n_steps: int
    n_noise: int
    perturb: bool
    seed: int

    def mean(self, x: Float[Tensor, "n ..."], noise: Tensor | None) -> Float[Tensor, "n ..."]:
        """The mean score over noises and levels of scaled ``x``."""
        count, shape = self.n_noise * self.T, x.shape[1:]
        t = (torch.arange(1, self.T + 1, dtype=x.dtype, device=x.device) / self.n_steps).repeat(len(x) * self.n_noise)
        z = x.repeat_interleave(count, 0)
        if self.perturb:
            if noise is None:
                noise = content_draws(self.seed, "eps", x).normal(self.n_noise, self.T, *shape)
            a, b = broadcast(self.schedule.alpha(t), z), broadcast(self.schedule.sigma(t), z)
            z = a * z + b * noise.reshape(-1, *shape).to(z)
        return self.score_fn(z, t).reshape(len(x), count, *shape).mean(1)


@dataclass(kw_only=True)
class FittedPerturbed(FittedDetector):
    """A detector that reads EPS; ``score_`` is the score network."""

    score_: nn.Module
    T: int = 20
    n_steps: int = 1000
    n_noise: int = 1
    perturb: bool = True
    seed: int = 0

    def of_eps(self, eps: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The detector's score of expected perturbation scores, differentiable."""
        raise TypeError(f"{type(self).__name__} states no of_eps")

    def eps(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """EPS of ``x``, with a gradient where one is followed."""
        return expected_perturbation_score(
            self.score_,
            x,
            self.T,
            n_steps=self.n_steps,
            n_noise=self.n_noise,
            perturb=self.perturb,
            bounds=self.bounds,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.of_eps(self.eps(x))

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        with evaluating(self.score_), torch.no_grad():
            return self.graph(x.to(device_of(self.score_))).cpu()

    def detect(self, x: Float[Tensor, "n ..."], fpr: float = 0.05) -> Tensor:
        """Whether each input is abnormal, (n,) bool, at a false positive rate on ``reference_`` of at most ``fpr``."""
        return self.score(x) > self.threshold(fpr)


@dataclass(kw_only=True)
class FittedEPSAD(FittedPerturbed):
    """Score: the biased MMD^2 between the natural EPS ``natural_`` (m, ...) and one EPS; >= 0."""

    natural_: Tensor = field(default_factory=lambda: torch.empty(0))
    bandwidth_: float = 1.0
    kernel_: DeepKernel | None = None

    def __post_init__(self) -> None:
        # the reference is embedded once: its own mean kernel is the same for every input
        flat = self.natural_.flatten(1).double()
        with torch.no_grad():
            self._embedded = self.kernel_.embedded(self.natural_) if self.kernel_ is not None else (flat, flat)
            self._within = self._between(self._embedded, self._embedded).mean()

    def _between(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Float[Tensor, "n m"]:
        if self.kernel_ is not None:
            return self.kernel_.of(a, b)
        return (-squared_distances(a[1], b[1]) / self.bandwidth_).exp()

    def of_eps(self, eps: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """mean k(ref, ref) - 2 mean_j k(ref_j, S) + k(S, S), where k(S, S) = 1."""
        flat = eps.flatten(1).double()
        one = self.kernel_.embedded(eps) if self.kernel_ is not None else (flat, flat)
        return self._within - 2 * self._between(one, self._embedded).mean(1) + 1


@dataclass(frozen=True, kw_only=True)
class PerturbedDetector(Detector):
    """What the detectors on scores share: the score model and how EPS is taken (see ``expected_perturbation_score``).

    ``score_model`` is a module ``(x_t in [-1, 1], t) -> score`` such as NoisePrediction; absent, the exact score of a
    Gaussian with the mean and covariance of the data.
    """

    score_model: nn.Module | None = None
    T: int = 20
    n_steps: int = 1000
    n_noise: int = 1
    perturb: bool = True
    seed: int = 0

    def score_of(self, data: Data) -> nn.Module:
        """The score model."""
        low, high = data.bounds
        scaled = (data.x - low) / (high - low) * 2 - 1
        return GaussianScore.fit(scaled) if self.score_model is None else self.score_model

    def options(self, model: nn.Module, data: Data) -> dict[str, object]:
        """What a fitted detector on scores is made of."""
        names = ("T", "n_steps", "n_noise", "perturb", "seed", "batch_size")
        shared = {name: getattr(self, name) for name in names}
        return {"model": model, "shape": data.shape, "bounds": data.bounds, "score_": self.score_of(data), **shared}


@dataclass(frozen=True, kw_only=True)
class EPSAD(PerturbedDetector):
    """EPS-AD (Zhang et al., 2023, arXiv:2305.16035, algorithm 1): one input's EPS against ``ref_size`` natural ones.

    ``kernel`` "deep" is the paper's: DeepKernelMMD, trained on the EPS of natural inputs and of the same inputs
    attacked on ``model`` by FGSM of size ``eps``, every second one in l2 with a ball of radius eps sqrt(d). "gaussian",
    the default, needs no attack: one Gaussian with the median of the squared distances as bandwidth. The reference is a
    random part of the data, at most half of it, and the kernel is trained on the rest.

    Shapes and errors: see Detector and ``expected_perturbation_score``; also InputError for fewer than 2 references.
    """

    ref_size: int = 500
    kernel: Literal["deep", "gaussian"] = "gaussian"
    training: DeepKernelMMD = DeepKernelMMD()
    eps: float = 1 / 255

    def learn(self, model: nn.Module, data: Data) -> FittedEPSAD:
        if self.kernel not in ("deep", "gaussian"):
            raise unknown("kernel of EPSAD", str(self.kernel), ("deep", "gaussian"))
        size = min(self.ref_size, len(data) // 2)
        if size < 2:
            raise InputError(f"EPSAD: {size} references of {len(data)} samples; expected at least 2")
        order = torch.randperm(len(data), generator=torch_rng(self.seed, "reference"))
        reference, rest = data[order[:size]], data[order[size:]]
        options = self.options(model, data)
        plain = FittedPerturbed(**options)  # type: ignore[arg-type]
        with evaluating(plain.score_), torch.no_grad():
            device = device_of(plain.score_)
            natural = plain.eps(reference.x.to(device))
            if self.kernel == "gaussian":
                bandwidth = median_bandwidth(natural.flatten(1).double())
                return FittedEPSAD(**options, natural_=natural, bandwidth_=bandwidth)  # type: ignore[arg-type]
            inside, outside = (plain.eps(x.to(device)) for x in (rest.x, self._attacked(model, rest)))
        kernel = self.training.fit(inside.cpu(), outside.cpu(), seed=self.seed).to(device)
        return FittedEPSAD(**options, natural_=natural, kernel_=kernel)  # type: ignore[arg-type]

    def _attacked(self, model: nn.Module, data: Data) -> Float[Tensor, "n ..."]:
        """``data`` attacked, samples in turn under each norm."""
        x = data.x.clone()
        for k, ball in enumerate((Linf(self.eps), L2(self.eps * data.x[0].numel() ** 0.5))):
            part = data[torch.arange(k, len(data), 2)]
            if len(part):
                attack = FGSM(ball=ball, bounds=data.bounds)
                x[k::2] = attack.run(model, part.x, Untargeted(part.y), seed=self.seed).x_adv
        return x
