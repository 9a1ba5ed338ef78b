"""SRAT: adversarial training that pulls the classes' features apart before it reweights them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks import PGD
from assay.data import Batch, Data
from assay.defenses.base import AdversarialTrainer
from assay.detect.layers import captured, chosen_layers, pooled
from assay.dynamics import head_inputs
from assay.losses import DeferredReweighting, FocalLoss, LDAMLoss, SupConLoss
from assay.nets import CosineNetwork
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import derive
from assay.training import State, fit

BASES = ("ce", "focal", "ldam")
SCALE = 30.0  # of the cosines that LDAM takes as logits


@dataclass(frozen=True, kw_only=True)
class SRAT(AdversarialTrainer):
    """mean of w_y base(f(x'), y) + ``lam`` x SupCon(h(x')), x' from PGD on cross-entropy (Wang et al., 2021,
    arXiv:2107.13639, section 4; the separation loss is the form of Khosla et al., arXiv:2004.11362, eq. 2).

    h is ``feature``: "penultimate", the last rectified layer, or a layer's name; maps are averaged over space. Class
    weights come into force at ``defer_epoch`` (None: after 4/5 of the epochs, 160 of the paper's 200): "cb" at
    ``beta``, "inverse" or "none", see DeferredReweighting. They weigh the separation loss too where
    ``weigh_separation``. ``base_loss``: "ce", "focal" at ``gamma``, or "ldam", for which the linear head becomes a
    CosineHead of scale 30, in the returned model as well. A rare class often has one sample in a batch and so no
    positive: ``queue`` features of earlier batches join the contrast, and ``state.log`` holds under "lonely" the
    share of anchors without one. ``lam`` = 0 is reweighted adversarial training, with "none" that of Madry et al.

    The paper trains with SGD at 0.1 for 200 epochs. Adam is no substitute: the slope of the separation loss grows as
    features shrink, and under steps of fixed size nothing makes them grow, so that the head starves. InputError for
    other options and layers.
    """

    contract: ClassVar[bool] = False

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    attack_steps: int = 10
    feature: str = "penultimate"
    lam: float = 1.0
    tau: float = 0.1
    weighting: Literal["cb", "inverse", "none"] = "cb"
    beta: float = 0.9999
    defer_epoch: int | None = None
    base_loss: Literal["ce", "focal", "ldam"] = "ce"
    gamma: float = 2.0
    weigh_separation: bool = False
    queue: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_loss not in BASES:
            raise unknown("base_loss of SRAT", str(self.base_loss), BASES)
        if self.lam < 0 or self.queue < 0:
            raise InputError(f"SRAT: lam={self.lam}, queue={self.queue}; expected numbers >= 0")
        self.reweighting()
        self.contrast()
        FocalLoss(self.gamma)

    def reweighting(self, epochs: float | None = None) -> DeferredReweighting:
        """When which class weights are in force, in a training of ``epochs`` (None: as the field says)."""
        epochs = self.epochs if epochs is None else epochs
        defer = round(0.8 * epochs) if self.defer_epoch is None else self.defer_epoch
        return DeferredReweighting(weighting=self.weighting, beta=self.beta, defer=defer)

    def contrast(self) -> SupConLoss:
        """The separation loss of each anchor."""
        return SupConLoss(self.tau, reduction="none")

    def fit(self, model: nn.Module, data: Data, *, seed: int, **options: Any) -> nn.Module:
        check_inputs("SRAT", data.x, data.y, data.bounds)
        plan = self.plan()
        if self.base_loss == "ldam" and not isinstance(model, CosineNetwork):
            _, head = head_inputs(model, data.x[:1])
            model = CosineNetwork(model, next(n for n, m in model.named_modules() if m is head), SCALE)
        layers = chosen_layers(model, self.feature, data.x[:16])
        if len(layers) != 1:
            raise InputError(f"SRAT: feature={self.feature!r} names {len(layers)} layers; expected one")

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            return self.loss(net, batch, state, layers[0])

        return fit(model, data, objective, plan, seed=seed, **options)

    def loss(self, model: nn.Module, batch: Batch, state: State, layer: str) -> Float[Tensor, ""]:
        """The loss of one batch, features being the output of ``layer``."""
        attack = PGD(
            ball=self.ball(),
            steps=self.attack_steps,
            step_size=self.step_size,
            early_stop=False,
            bounds=state.data.bounds,
        )
        x_adv = attack(model, batch.x, batch.y, seed=derive(state.seed, state.step), index=batch.index)
        with captured(model, [layer]) as caught:
            logits = model(x_adv)
        counts = torch.bincount(state.data.y, minlength=logits.shape[1])
        epochs = None if self.steps is None else self.steps / -(-len(state.data) // self.batch_size)
        weight = self.reweighting(epochs).weights(counts, state.epoch).to(logits)[batch.y]
        loss = (weight * self.base(logits, batch.y, counts)).mean()
        if self.lam == 0:
            return loss
        lonely = self.lonely(batch.y, state)
        separation = self.separation(pooled(caught[layer]), batch.y, state)
        state.log.append({"step": state.step, "lonely": float(lonely.double().mean())})
        if self.weigh_separation:
            separation = weight * separation
        return loss + self.lam * separation.sum() / (~lonely).sum().clamp_min(1)

    def base(
        self, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], counts: Int[Tensor, " c"]
    ) -> Float[Tensor, " n"]:
        """The loss of each sample before it is weighted."""
        if self.base_loss == "focal":
            return FocalLoss(self.gamma, reduction="none")(logits, y)
        if self.base_loss == "ldam":
            # The logits are scaled cosines already, so that the attack sees the same: the margins are scaled instead.
            sizes = counts.clamp_min(1).tolist()
            return LDAMLoss(sizes, max_margin=0.5 * SCALE, scale=1.0, reduction="none")(logits, y)
        return F.cross_entropy(logits, y, reduction="none")

    def lonely(self, y: Int[Tensor, " n"], state: State) -> Bool[Tensor, " n"]:
        """Which anchors have no positive, neither in the batch nor in the queue."""
        alike = (y[:, None] == y).sum(1) > 1
        labels = state.memory.get("srat/labels")
        return ~alike if labels is None else ~(alike | torch.isin(y, labels))

    def separation(self, z: Float[Tensor, "n d"], y: Int[Tensor, " n"], state: State) -> Float[Tensor, " n"]:
        """The separation loss of each anchor, 0 where it has no positive; the queue moves on."""
        keys, labels = state.memory.get("srat/keys"), state.memory.get("srat/labels")
        loss = self.contrast()(z, y, keys, labels)
        if self.queue:
            kept = F.normalize(z.detach(), dim=1), y
            old = () if keys is None or labels is None else (keys, labels)
            both = [torch.cat((o, k)) for o, k in zip(old, kept, strict=True)] if old else list(kept)
            state.memory["srat/keys"], state.memory["srat/labels"] = (b[-self.queue :] for b in both)
        return loss
