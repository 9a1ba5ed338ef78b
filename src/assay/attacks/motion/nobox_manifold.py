"""The hard no-box attack: contrastive features, pseudo-labels from k-means, and motion-informed gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Linf
from assay.attacks.base import Goal
from assay.attacks.engine import Climb, Memory
from assay.attacks.motion.base import FittedNoBox, NoBoxAttack
from assay.attacks.motion.nobox_loss import Dissimilar, NoBoxLoss
from assay.attacks.motion.smi import SMIGradient
from assay.attacks.motion.smi_fgsm import SMIFGSM
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws, derive


@dataclass(frozen=True, kw_only=True)
class _Descent(SMIFGSM):
    """Descends the no-box loss of the encoder's features; the goal brings what goes with each sample."""

    loss_of: NoBoxLoss = NoBoxLoss()

    def objective(self, logits: Float[Tensor, "n d"], goal: Goal) -> Float[Tensor, " n"]:
        assert isinstance(goal, Dissimilar)
        return -self.loss_of.of(logits, goal)

    def frames(self, run: Climb) -> Int[Tensor, " n"] | None:
        assert isinstance(run.goal, Dissimilar)
        frames, t = run.goal.frames, run.x.shape[self.smi.time_dim]
        return torch.where(frames < 0, t, frames)

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        assert isinstance(run.goal, Dissimilar)
        run.memory["moved"] = run.goal.moved
        return super().begin(run)

    def direction(self, grad: Tensor, z: Tensor, memory: Memory, step: int) -> Float[Tensor, "n ..."]:
        return super().direction(grad, z, memory, step) * memory["moved"]


@dataclass(frozen=True)
class FittedNoBoxManifold(FittedNoBox):
    """features_ (m, d): those of the pool; centres_ (k, d): the k-means centres of these, scaled to length 1."""

    features_: Float[Tensor, "m d"]
    centres_: Float[Tensor, "k d"]

    def perturb(
        self, x: Tensor, moved: Tensor, frames: Int[Tensor, " n"], *, seed: int, index: Int[Tensor, " n"]
    ) -> Float[Tensor, "n ..."]:
        attack = self.attack
        assert isinstance(attack, NoBoxManifoldAttack)
        clean = predict(self.encoder, x)
        rows = Draws(seed, "companions", index).integers(len(self.features_), max(attack.companions, 1))
        references = attack.loss.references(clean, self.features_[rows[:, : attack.companions]], self.centres_)
        return (
            attack.descent().run(self.encoder, x, Dissimilar(references, frames, moved), seed=seed, index=index).x_adv
        )


@dataclass(frozen=True, kw_only=True)
class NoBoxManifoldAttack(NoBoxAttack):
    """Fool classifiers of motions without any of them, without labels (Lu et al., 2023, arXiv:2308.05681).

    ``fit`` embeds the pool with an encoder that contrastive learning gave (see SkeletonMoCo) and clusters the
    embeddings, scaled to length 1, by k-means with ``n_clusters`` (about twice the number of actions to be expected; as
    many as samples where these are fewer, with a warning). The attack then takes ``steps`` steps of ``alpha`` along the
    sign of the gathered, motion-informed gradient (see SMIGradient) down the loss of NoBoxLoss, and stays within
    ``eps``. ``base`` "mi-fgsm" gathers gradients with the factor ``mu``, "fgsm" forgets them (the authors' MI- and
    I-forms). The authors compare a sample with the ``companions`` = 7 others of its batch; here they are drawn from the
    pool by the sample's index, so that a result does not depend on the batch. The defaults are the authors' for NTU-60,
    in metres. Further options, shapes, ranges and errors: see NoBoxAttack.
    """

    alpha: float = 1e-4
    steps: int = 400
    mu: float = 1.0
    base: Literal["fgsm", "mi-fgsm"] = "mi-fgsm"
    smi: SMIGradient = SMIGradient()
    loss: NoBoxLoss = NoBoxLoss()
    n_clusters: int = 120
    companions: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in ("fgsm", "mi-fgsm"):
            raise InputError(f"NoBoxManifoldAttack: base is {self.base!r}; expected 'fgsm' or 'mi-fgsm'")
        if not self.alpha > 0 or self.steps < 0 or self.mu < 0:
            given = f"alpha={self.alpha}, steps={self.steps}, mu={self.mu}"
            raise InputError(f"NoBoxManifoldAttack: {given}; expected alpha > 0, steps and mu not negative")
        if self.n_clusters < 1 or self.companions < 0:
            given = f"n_clusters={self.n_clusters}, companions={self.companions}"
            raise InputError(f"NoBoxManifoldAttack: {given}; expected at least 1 and at least 0")

    def descent(self) -> SMIFGSM:
        """The iteration as a gradient attack on the encoder."""
        return _Descent(
            ball=Linf(self.eps),
            bounds=self.bounds,
            steps=self.steps,
            step_size=self.alpha / self.eps if self.eps > 0 else 1.0,
            momentum=self.mu if self.base == "mi-fgsm" else 0.0,
            smi=self.smi,
            loss_of=self.loss,
        )

    def learn(self, encoder: nn.Module, pool: Tensor, *, seed: int) -> FittedNoBoxManifold:
        from sklearn.cluster import KMeans

        features = predict(encoder, pool)
        if features.dim() != 2:
            raise InputError(f"NoBoxManifoldAttack: features of shape {tuple(features.shape)}; expected (n, d)")
        k = min(self.n_clusters, len(pool))
        if k < self.n_clusters:
            warnings.warn(
                f"NoBoxManifoldAttack: {len(pool)} samples; {k} clusters, not {self.n_clusters}", stacklevel=3
            )
        unit = nn.functional.normalize(features, dim=1)
        found = KMeans(k, n_init=1, random_state=derive(seed, "k-means") % 2**32).fit(unit.double().numpy())
        return FittedNoBoxManifold(self, encoder, features, torch.from_numpy(found.cluster_centers_).to(unit))
