"""DivideMix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.labels.elr_plus import MeanLogits
from assay.labels.sharpening import sharpened
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, torch_rng
from assay.subject import fresh
from assay.training import State, Trainer


@dataclass(frozen=True, kw_only=True)
class DivideMix(Trainer):
    """Two networks that divide the data for each other and learn from the doubtful part as if it had no labels (Li et
    al., 2020, arXiv:2002.07394, Algorithm 1).

    After ``warm`` epochs of plain training, each epoch begins with a mixture of two Gaussians fitted to the losses of
    either network; w is the posterior of the one with the smaller mean, and the *other* network takes a sample for
    clean where w > ``threshold``. Targets are w y + (1 - w) p of a clean sample, p being the network's own prediction,
    and the mean of both predictions of a doubtful one, sharpened at ``temperature``. Samples and targets
    are mixed by lambda ~ max(Beta(``alpha``, ``alpha``), its complement), and the loss is cross-entropy on the clean
    ones + the squared error of probabilities on the doubtful ones + the divergence of the uniform distribution from
    the mean prediction, the second weighted by ``doubtful``, which sets in linearly over ``ramp`` epochs.
    ``fit`` returns the two networks' mean logits.

    Against the authors' code: each step trains both networks on one batch, which is divided, and not one network for
    an epoch on equal batches of either part; predictions are of the one view that ``augment`` gives. Defaults are
    theirs for CIFAR-10. The work is that of two networks with two passes more. InputError for parameters out of range.
    """

    warm: int = 10
    threshold: float = 0.5
    temperature: float = 0.5
    alpha: float = 4.0
    doubtful: float = 25.0
    ramp: int = 16

    def __post_init__(self) -> None:
        sound = self.warm >= 0 and self.ramp >= 1 and 0 <= self.threshold < 1
        if not (sound and all(0 < v < math.inf for v in (self.temperature, self.alpha)) and self.doubtful >= 0):
            raise InputError(
                f"DivideMix: warm={self.warm}, ramp={self.ramp}, threshold={self.threshold}, "
                f"temperature={self.temperature}, alpha={self.alpha}, doubtful={self.doubtful}; expected warm >= 0, "
                "ramp >= 1, threshold in [0, 1), temperature and alpha > 0, doubtful >= 0"
            )

    def divided(self, nets: Sequence[nn.Module], state: State) -> Float[Tensor, "2 n"]:
        """w of every training sample for the first and the second network, as of the beginning of this epoch."""
        key = "dividemix"
        if key not in state.memory or int(state.memory[f"{key}/epoch"]) != state.epoch:
            found = []
            for name, other in enumerate(reversed(nets)):
                losses = F.cross_entropy(predict(other, state.data.x), state.data.y, reduction="none")
                found.append(clean_probability(losses, seed=derive(state.seed, key, name, state.epoch)))
            state.memory |= {key: torch.stack(found), f"{key}/epoch": torch.tensor(state.epoch)}
        return state.memory[key]

    def targets(
        self, y: Int[Tensor, " b"], own: Float[Tensor, "b c"], both: Float[Tensor, "b c"], w: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c"]:
        """Sharpened targets: refined labels of clean samples, guessed ones of doubtful samples."""
        share = w[:, None]
        refined = share * F.one_hot(y, own.shape[1]) + (1 - share) * own
        return sharpened(torch.where(share > self.threshold, refined, both), self.temperature)

    def weight(self, epoch: int) -> float:
        """The weight of the doubtful part in ``epoch``."""
        return self.doubtful * min(max((epoch - self.warm) / self.ramp, 0.0), 1.0)

    def loss(
        self, logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"], clean: Tensor, weight: float
    ) -> Float[Tensor, ""]:
        """The three terms for mixed samples, of which ``clean`` (b,) says whose first part is clean."""
        log_p = logits.log_softmax(1)
        p, share = log_p.exp(), clean.to(logits)
        known = -((target * log_p).sum(1) * share).sum() / share.sum().clamp_min(1)
        guessed = ((p - target).square().mean(1) * (1 - share)).sum() / (1 - share).sum().clamp_min(1)
        balance = -(log_p.logsumexp(0) - math.log(len(p) / logits.shape[1])).mean()
        return known + weight * guessed + balance

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        nets = list(model.children())
        if state.epoch < self.warm:
            return torch.stack([F.cross_entropy(net(batch.x), batch.y) for net in nets]).sum()
        w = self.divided(nets, state)[:, state.rows(batch.index)].to(batch.x.device)
        with torch.no_grad():
            own = [net(batch.x).softmax(1) for net in nets]
        losses = []
        for k, net in enumerate(nets):
            target = self.targets(batch.y, own[k], (own[0] + own[1]) / 2, w[k])
            drawn = float(numpy_rng(state.seed, "dividemix", k, state.step).beta(self.alpha, self.alpha))
            share = max(drawn, 1 - drawn)
            partner = torch.randperm(len(batch.y), generator=torch_rng(state.seed, "dividemix", k, state.step))
            logits = net(share * batch.x + (1 - share) * batch.x[partner])
            mixed = share * target + (1 - share) * target[partner]
            losses.append(self.loss(logits, mixed, w[k] > self.threshold, self.weight(state.epoch)))
        return torch.stack(losses).sum()

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        return super().fit(MeanLogits(model, fresh(model, seed=seed)), data, seed=seed, **options)


def clean_probability(losses: Float[Tensor, " n"], *, seed: int) -> Float[Tensor, " n"]:
    """The posterior of the component with the smaller mean, of two Gaussians fitted to losses scaled to [0, 1]; 1 where
    all losses are equal.
    """
    from sklearn.mixture import GaussianMixture

    low, high = losses.min(), losses.max()
    if low == high:
        return torch.ones_like(losses)
    scaled = ((losses - low) / (high - low)).double().numpy()[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed % 2**32).fit(scaled)
    posterior = mixture.predict_proba(scaled)[:, int(np.argmin(mixture.means_[:, 0]))]
    return torch.from_numpy(posterior).to(losses)
