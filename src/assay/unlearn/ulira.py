"""Can an attacker who knows the unlearner tell an unlearned sample from one that was never seen?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.privacy.lira import FEW, FLOOR
from assay.privacy.roc import curve
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


@dataclass(frozen=True)
class ULiRAResult:
    """Log-likelihood ratios (n, q) of the models that were held out: higher is more likely unlearned."""

    unlearned_: Float[Tensor, "n q"]
    retrained_: Float[Tensor, "n q"]

    def mean(self) -> float:
        """The share of right guesses over pairs and samples."""
        return float(self.accuracy.mean())

    @property
    def accuracy(self) -> Float[np.ndarray, " n"]:
        """For each pair of models, the share of right guesses over samples and both models; a tie counts half."""
        right = (self.unlearned_.sign() - self.retrained_.sign()).mean(1)
        return (0.5 + right / 4).numpy()

    @property
    def by_sample(self) -> Float[np.ndarray, " q"]:
        """The same for each sample, over the pairs: an average near 1/2 may hide samples that are always found."""
        return (0.5 + (self.unlearned_.sign() - self.retrained_.sign()).mean(0) / 4).numpy()

    def tpr(self, fpr: float) -> float:
        """The share of unlearned (model, sample) pairs that are found when ``fpr`` of the retrained are called so."""
        scores = torch.cat([self.unlearned_.flatten(), self.retrained_.flatten()]).numpy()
        false, true = curve(scores, np.repeat([True, False], self.unlearned_.numel()))
        return float(true[false <= fpr].max())


def ulira(unlearned: Float[Tensor, "n q"], retrained: Float[Tensor, "n q"]) -> ULiRAResult:
    """Likelihood-ratio attack on unlearning (Hayes et al., 2024, arXiv:2403.01218, algorithm 1, "U-LiRA").

    ``unlearned`` holds the margins (see ``klom.margins``) of q forgotten samples under n models that were trained on
    them and then unlearned them, ``retrained`` those under n models that never saw them. Pair by pair one model of each
    side is held out; for each sample two normal distributions are fitted to the others and each held-out model gets the
    log-ratio of their densities, so that its guess never uses itself and, where both sides are alike, is right half of
    the time. The forget set is the same in all models (in the paper it is drawn anew). Variances are pooled over
    samples below 64 models, as in LiRA. Raises InputError for fewer than three models a side.
    """
    if unlearned.shape != retrained.shape or unlearned.dim() != 2 or len(unlearned) < 3:
        raise InputError(
            f"ulira: margins {tuple(unlearned.shape)} and {tuple(retrained.shape)}; expected the same (n, q), n >= 3"
        )
    if not (torch.isfinite(unlearned).all() and torch.isfinite(retrained).all()):
        raise InputError("ulira: some margins are not finite; expected numbers")
    (mean_u, var_u), (mean_r, var_r) = (_left_out(m.double()) for m in (unlearned, retrained))

    def ratio(z: Tensor) -> Tensor:
        near, far = (z - mean_u).square() / var_u, (z - mean_r).square() / var_r
        return 0.5 * (far - near + (var_r / var_u).log())

    return ULiRAResult(ratio(unlearned.double()), ratio(retrained.double()))


def chance(
    unlearned: Float[Tensor, "n q"], retrained: Float[Tensor, "n q"], *, draws: int = 200, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """``ulira``'s share of right guesses when it is drawn at random which models are called unlearned.

    Where unlearning leaves no trace the true share is one more draw from these (a permutation test). Their spread is
    wide with few models: samples shift together from model to model.
    """
    both, n = torch.cat([unlearned, retrained]), len(unlearned)
    orders = [torch.randperm(2 * n, generator=torch_rng(seed, "relabel", k)) for k in range(draws)]
    return np.array([ulira(both[o[:n]], both[o[n:]]).mean() for o in orders])


def _left_out(m: Float[Tensor, "n q"]) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n _"]]:
    """Mean and variance of each sample's margins with model i left out, for all i at once."""
    n, off = len(m), m - m.mean(0)
    mean = m.mean(0) - off / (n - 1)
    square = off.square().sum(0) - off.square() * n / (n - 1)
    variance = square / (n - 2)
    return mean, (variance if n - 1 >= FEW else variance.mean(1, keepdim=True)).clamp_min(FLOOR)
