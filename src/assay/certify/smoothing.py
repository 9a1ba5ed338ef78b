"""Randomised smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn

from assay.certify.base import Certificate, Certifier
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating, traceable
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing(Certifier):
    """The class that is most likely under Gaussian noise cannot change within an l2 radius.

    Cohen et al., 2019, arXiv:1902.02918, theorem 1 and the procedure CERTIFY (section 3.2.2): ``n0`` draws choose the
    class, ``n`` others bound its probability p from below at level 1 - ``alpha`` (Clopper-Pearson); where the bound
    exceeds 1/2 the radius is ``sigma`` * Phi^-1(bound), elsewhere the method abstains (prediction -1, radius 0). The
    certificate is about the *smoothed* classifier, and holds with probability 1 - alpha for each sample. ``sigma`` > 0
    is in the data's units. Only decisions are used. The noise of a sample depends on (seed, its index) alone.
    InputError for a model that does not give finite logits (n, c) of two classes or more, or of another floating type.
    """

    sigma: float = 0.25
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise InputError(f"RandomizedSmoothing: sigma is {self.sigma}; expected a finite number above 0")
        if self.n0 < 1 or self.n < 1:
            raise InputError(f"RandomizedSmoothing: n0 = {self.n0}, n = {self.n}; expected at least 1 each")
        if not 0 < self.alpha < 1:
            raise InputError(f"RandomizedSmoothing: alpha is {self.alpha}; expected 0 < alpha < 1")
        if self.batch_size < 1:
            raise InputError(f"RandomizedSmoothing: batch_size is {self.batch_size}; expected at least 1")

    @property
    def largest_radius(self) -> float:
        """What n unanimous draws certify: 0 where they are too few for any radius."""
        return max(self.sigma * float(stats.norm.ppf(self.alpha ** (1 / self.n))), 0.0)

    def certify(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        *,
        seed: int = 0,
        index: Int[Tensor, " n"] | None = None,
    ) -> Certificate:
        """``index`` names the samples (default 0 to n - 1): equal names draw equal noise."""
        check_inputs("RandomizedSmoothing", x, y)
        index = torch.arange(len(x)) if index is None else index
        check_labels("RandomizedSmoothing: index", index, len(x))
        chosen = self.counts(model, x, self.n0, seed, "select", index).argmax(1)
        hits = self.counts(model, x, self.n, seed, "estimate", index)
        bound = lower_bound(hits.gather(1, chosen[:, None])[:, 0], self.n, self.alpha)
        sure = bound > 0.5
        radius = torch.where(sure, self.sigma * torch.from_numpy(stats.norm.ppf(bound.numpy())), 0.0)
        prediction = torch.where(sure, chosen, -1)
        return Certificate(prediction == y, prediction, radius, 1 - self.alpha)

    def counts(
        self, model: nn.Module, x: Tensor, draws: int, seed: int, stream: str, index: Tensor
    ) -> Int[Tensor, "n c"]:
        """How often each class is predicted among ``draws`` noisy copies of each sample."""
        device, total = device_of(model), len(x) * draws
        table = torch.zeros(len(x), 0, dtype=torch.int64)
        with traceable("RandomizedSmoothing", model, x), evaluating(model), torch.no_grad():
            for start in range(0, total, self.batch_size):
                pair = torch.arange(start, min(start + self.batch_size, total))
                row, draw = pair // draws, pair % draws
                noise = Draws(seed, f"smoothing.{stream}", index[row] * draws + draw).normal(*x.shape[1:])
                scores = model((x[row] + self.sigma * noise.to(x.dtype)).to(device)).cpu()
                if scores.dim() != 2 or scores.shape[1] < 2:
                    shape = tuple(scores.shape)
                    raise InputError(f"RandomizedSmoothing: the model gives {shape}; expected logits (n, c), c >= 2")
                if not torch.isfinite(scores).all():
                    raise InputError("RandomizedSmoothing: the model's outputs are not finite; expected finite logits")
                if not start:
                    table = torch.zeros(len(x), scores.shape[1], dtype=torch.int64)
                table.index_put_((row, scores.argmax(1)), torch.ones_like(row), accumulate=True)
        return table


def lower_bound(hits: Int[Tensor, " n"], draws: int, alpha: float) -> Float[Tensor, " n"]:
    """One-sided Clopper-Pearson bound of a binomial proportion at level 1 - alpha (Clopper & Pearson, 1934)."""
    k = hits.numpy()
    return torch.from_numpy(stats.beta.ppf(alpha, k, draws - k + 1)).nan_to_num(0.0)  # k = 0 has no beta law: 0
