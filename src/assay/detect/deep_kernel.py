"""A kernel on a network's features, trained to tell two samples apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.detect.mmd import mmd2, mmd_variance, squared_distances
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.runtime.spec import rebuildable
from assay.training import Plan, State, fit

SMALLEST = 1e-8  # what the variance is kept above by (eq. 5 of Liu et al.; the official code's number)


@rebuildable
class FeatureNet(nn.Module):
    """The authors' discriminator for 32 x 32: two strided 3x3 convolutions, then a linear layer to ``dim`` features."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), dim: int = 300) -> None:
        super().__init__()
        channels, height, width = shape
        small = math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.BatchNorm2d(32),
            nn.Flatten(),
            nn.Linear(32 * small, dim),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.body(x)


class DeepKernel(nn.Module):
    """k(S, S') = [(1 - e) exp(-|phi(S) - phi(S')|^2 / sigma_phi) + e] exp(-|S - S'|^2 / sigma_s).

    (Liu et al., 2020, arXiv:2002.09116, eq. 1, with Gaussians.) Learned are phi, e = sigmoid(``e_logit``) and the roots
    of both bandwidths, which starts as ``sigma_phi`` and 2 h w ``spread``, e as ``e0``. k(S, S) = 1; distances are
    taken in float64.
    """

    def __init__(
        self,
        features: nn.Module,
        shape: tuple[int, ...],
        sigma_phi: float = 15.0,
        spread: float = 100.0,
        e0: float = 5e-3,
    ) -> None:
        super().__init__()
        self.features = features
        self.e_logit = nn.Parameter(torch.tensor(math.log(e0 / (1 - e0))))
        self.root_phi = nn.Parameter(torch.tensor(math.sqrt(sigma_phi)))
        self.root_s = nn.Parameter(torch.tensor(math.sqrt(2 * math.prod(shape[1:]) * spread)))

    def embedded(self, s: Float[Tensor, "n ..."]) -> tuple[Tensor, Tensor]:
        """phi(S) and S itself, flat and in float64: what ``of`` compares."""
        return self.features(s).double(), s.flatten(1).double()

    def of(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Float[Tensor, "n m"]:
        """The kernel between embedded samples."""
        deep = squared_distances(a[0], b[0]) / self.root_phi.double().square()
        plain = squared_distances(a[1], b[1]) / self.root_s.double().square()
        e = self.e_logit.double().sigmoid()
        return ((1 - e) * (-deep).exp() + e) * (-plain).exp()

    def forward(self, a: Float[Tensor, "n ..."], b: Float[Tensor, "m ..."]) -> Float[Tensor, "n m"]:
        """The kernel matrix (n, m), float64, in (0, 1]."""
        return self.of(self.embedded(a), self.embedded(b))

    def power(self, a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
        """J = MMD_u^2 / sqrt(var + 1e-8), which grows with the power of the test (Liu et al., eq. 3 and 4).

        Both samples pass the network together, so that they share what it takes from a batch.
        """
        n = len(a)
        phi, flat = self.embedded(torch.cat((a, b)))
        x, y = (phi[:n], flat[:n]), (phi[n:], flat[n:])
        xx, yy, xy = self.of(x, x), self.of(y, y), self.of(x, y)
        return mmd2(xx, yy, xy) / (mmd_variance(xx, yy, xy) + SMALLEST).sqrt()


@dataclass(frozen=True, kw_only=True)
class DeepKernelMMD:
    """``fit(normal, abnormal, *, seed)`` -> DeepKernel: maximise J over batches of both (Zhang et al., 2023,
    arXiv:2305.16035, section 4; plan of the official code: Adam, batches of 500, at most 30 an epoch, 200 epochs).

    ``features`` (n, ...) -> (n, d), absent: FeatureNet with 300 features. ``sigma_phi`` is 15 for CIFAR-10 and 0.5 for
    ImageNet, ``lr`` 2e-3 in the official README (2e-5 is noted there for CIFAR-10). InputError where the samples differ
    in shape or there are fewer than two of each.
    """

    features: nn.Module | None = None
    sigma_phi: float = 15.0
    spread: float = 100.0
    epochs: int = 200
    batch_size: int = 500
    lr: float = 2e-3

    def fit(self, normal: Float[Tensor, "n ..."], abnormal: Float[Tensor, "n ..."], *, seed: int) -> DeepKernel:
        """The trained kernel, in evaluation mode; row i of both makes a pair."""
        check_inputs("DeepKernelMMD", normal)
        check_inputs("DeepKernelMMD", abnormal)
        n = len(normal)
        if normal.shape != abnormal.shape or n < 2:
            shapes = f"{tuple(normal.shape)} and {tuple(abnormal.shape)}"
            raise InputError(f"DeepKernelMMD: samples of shapes {shapes}; expected the same, with n >= 2")
        shape = tuple(normal.shape[1:])
        with seeded(seed, "kernel"):
            net = FeatureNet(shape) if self.features is None else self.features
            start = DeepKernel(net, shape, self.sigma_phi, self.spread)
        pairs = Data(
            normal,
            torch.zeros(n, dtype=torch.int64),
            ("normal", "abnormal"),
            (-math.inf, math.inf),
            "scores",
            fields={"abnormal": abnormal},
        )
        size = min(self.batch_size, n)
        steps = self.epochs * min(max(n // size, 1), 30)
        plan = Plan(steps=steps, batch_size=size, lr=self.lr, schedule="constant", drop_last=True)
        trained = fit(start, pairs, self._objective, plan, seed=seed)
        if not isinstance(trained, DeepKernel):
            raise TypeError(f"training gave {type(trained).__name__}")
        return trained

    def _objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        if not isinstance(model, DeepKernel):
            raise TypeError(f"the kernel is a {type(model).__name__}")
        return -model.power(batch.x, batch.fields["abnormal"])
