"""Hyp-OC: one class against pseudo-negatives around its mean, in a Poincare ball."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.detect.base import Detector, FittedDetector
from assay.detect.fas_metrics import eer_threshold
from assay.detect.layers import captured, chosen_layers, pooled
from assay.detect.mahalanobis import PROBE
from assay.losses import HypPairwiseConfusion
from assay.nets.poincare import HyperbolicMLR, ToPoincare, check_curvature
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, evaluating, features
from assay.runtime.random import seeded
from assay.training import Plan, State, fit


class _Clip(nn.Module):
    def __init__(self, r: float | None) -> None:
        super().__init__()
        self.r = r

    def forward(self, u: Tensor) -> Tensor:
        return u if self.r is None else u * (self.r / u.norm(dim=1, keepdim=True).clamp(min=1e-15)).clamp(max=1)


class HypOCHead(nn.Module):
    """An MLP into the ball and two hyperbolic logits, class 0 real; or its Euclidean twin with linear logits."""

    def __init__(self, in_dim: int, method: HypOC) -> None:
        super().__init__()
        sizes, layers = (in_dim, *method.hidden, method.embed_dim), []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        d, c = method.embed_dim, method.c
        euclidean = method.geometry == "euclidean"
        self.enter: nn.Module = _Clip(method.clip_r) if euclidean else ToPoincare(d, c, method.clip_r)
        self.logits: nn.Module = nn.Linear(d, 2) if euclidean else HyperbolicMLR(d, 2, c)

    def embed(self, f: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """Features as points of the ball."""
        return self.enter(self.body(f))

    def forward(self, f: Float[Tensor, "n f"]) -> Float[Tensor, "n 2"]:
        return self.logits(self.embed(f))


@dataclass(kw_only=True)
class FittedHypOC(FittedDetector):
    """Score in [0, 1]: the probability of class 1, not real."""

    layer_: str
    head_: nn.Module = field(default_factory=nn.Identity)

    def of_features(self, f: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """The score of features, as a probability in float64."""
        return self.head_(f).double().softmax(1)[:, 1]

    def embed(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Inputs as points of the ball."""
        found = features(self.model, self.check(x), [self.layer_], batch_size=self.batch_size)[self.layer_]
        head = self.head_
        if not isinstance(head, HypOCHead):
            raise TypeError(f"the head is a {type(head).__name__}")
        return batched(head.embed, found, batch_size=self.batch_size)

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        with captured(self.model, [self.layer_]) as caught:
            self.model(x)
        return self.of_features(pooled(caught[self.layer_]))

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        found = features(self.model, x, [self.layer_], batch_size=self.batch_size)[self.layer_]
        with evaluating(self.head_):
            return batched(self.of_features, found, batch_size=self.batch_size)

    def eer(self, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> float:
        """The threshold of equal error rates on validation data with some attacks, y = 1."""
        return eer_threshold(self.score(x), y)


@dataclass(frozen=True, kw_only=True)
class HypOC(Detector):
    """Hyperbolic one-class classification (Narayan et al., 2024, arXiv:2404.14406), a head on frozen features.

    Each batch of real features f is joined by as many pseudo-negatives N(m, ``noise_std``^2 I), m <- alpha m + (1 -
    alpha) mean(f), m = mean(f) at first; no gradient reaches m. An MLP of widths ``hidden`` and ``embed_dim`` leads
    into the ball of curvature -c, clipped at ``clip_r`` (ToPoincare); the loss is the cross-entropy of hyperbolic
    logits, real 0 and pseudo 1, plus ``confusion`` times HypPairwiseConfusion of the real embeddings.
    ``reference_mean`` repeats the official code: m mixes the raw means of this batch and the one before, which is zero
    at the start of every epoch; ``reference_loss`` its arctan. ``centre`` "origin" draws pseudo-negatives around 0.
    ``geometry`` "euclidean" is the twin: linear logits, Euclidean pairs, the same clipping.

    The paper: c 0.1, r 2, alpha 0.8, std 1, widths 8192, 1000, 512 and 128 on the 4096 features of VGG-Face, whose last
    convolutions are tuned with the head, Adam with a rate of 1e-6 and decay 1e-6, batches of 8, 60 epochs, gradients
    clipped at 3. Widths and plan here are those of small networks, and the encoder is never changed. ``layer``:
    "penultimate" or a dotted name; labels are not used, all data are real. Raises InputError for an odd batch, c not
    above 0, alpha outside [0, 1]; see also Detector.
    """

    embed_dim: int = 32
    hidden: tuple[int, ...] = (128, 64)
    c: float = 0.1
    clip_r: float | None = 2.0
    alpha: float = 0.8
    noise_std: float = 1.0
    confusion: float = 1.0
    geometry: Literal["hyperbolic", "euclidean"] = "hyperbolic"
    centre: Literal["mean", "origin"] = "mean"
    reference_mean: bool = False
    reference_loss: bool = False
    layer: str = "penultimate"
    epochs: int = 20
    train_batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        check_curvature(self.c)
        if self.geometry not in ("hyperbolic", "euclidean"):
            raise unknown("geometry of HypOC", str(self.geometry), ("hyperbolic", "euclidean"))
        if self.centre not in ("mean", "origin"):
            raise unknown("centre of HypOC", str(self.centre), ("mean", "origin"))
        if self.train_batch < 2 or self.train_batch % 2 or not 0 <= self.alpha <= 1 or not self.noise_std > 0:
            given = f"train_batch={self.train_batch}, alpha={self.alpha}, noise_std={self.noise_std}"
            raise InputError(f"HypOC: {given}; expected an even batch, alpha in [0, 1], noise_std > 0")

    def mean(self, f: Float[Tensor, "n f"], state: State) -> Float[Tensor, " f"]:
        """The mean that pseudo-negatives are drawn around, moved on by this batch."""
        now, memory = f.detach().mean(0), state.memory
        if self.centre == "origin":
            return torch.zeros_like(now)
        if self.reference_mean:
            first = "raw" not in memory or int(memory["epoch"]) != state.epoch
            before = torch.zeros_like(now) if first else memory["raw"]
            memory.update(raw=now, epoch=torch.tensor(state.epoch))
        else:
            before = memory.get("mean", now)
        memory["mean"] = self.alpha * before + (1 - self.alpha) * now
        return memory["mean"]

    def joined(self, real: Tensor, pseudo: Tensor, state: State) -> Tensor:
        """What enters the MLP: the first half real, the second pseudo."""
        return torch.cat((real, pseudo))

    def pull(self, real: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """The mean distance between the halves of the real batch."""
        if self.geometry == "hyperbolic":
            return HypPairwiseConfusion(self.c, reference=self.reference_loss)(real)
        a, b = real.chunk(2)
        return (a - b).square().sum(1).clamp(min=1e-24).sqrt().mean()

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Tensor:
        """The loss of one batch of real features."""
        if not isinstance(model, HypOCHead):
            raise TypeError(f"HypOC trains its own head, not a {type(model).__name__}")
        f, n = batch.x, len(batch.x) // 2 * 2
        noise = state.draws("pseudo", batch.index).normal(f.shape[1]).to(f)
        pseudo = self.mean(f, state) + self.noise_std * noise
        points = model.embed(self.joined(f, pseudo, state))
        target = torch.arange(2, device=f.device).repeat_interleave(len(f))
        return F.cross_entropy(model.logits(points), target) + self.confusion * self.pull(points[:n])

    def learn(self, model: nn.Module, data: Data) -> FittedHypOC:
        layer = chosen_layers(model, self.layer, data.x[:PROBE])[-1]
        found = features(model, data.x, [layer], batch_size=self.batch_size)[layer]
        if len(found) < 2:
            raise InputError(f"HypOC: {len(found)} sample; expected at least 2")
        with seeded(self.seed, "head"):
            head: nn.Module = HypOCHead(found.shape[1], self)
        if self.epochs:
            real = Data(found, data.y, data.classes, (-math.inf, math.inf), "features")
            size = min(self.train_batch, len(real) // 2 * 2)
            plan = Plan(
                epochs=self.epochs,
                batch_size=size,
                lr=self.lr,
                weight_decay=self.weight_decay,
                schedule="constant",
                clip=3.0,
                drop_last=True,
            )
            head = fit(head, real, self.objective, plan, seed=self.seed)
        return FittedHypOC(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            batch_size=self.batch_size,
            layer_=layer,
            head_=head.eval(),
        )
