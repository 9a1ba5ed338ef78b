"""Adversarial preference training on embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.data import Batch
from assay.language.cadv_ul import EmbeddingTrainer, placed
from assay.language.replies import IGNORED, Replies, reply_logits, same_prompts, target_logps
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating
from assay.training import State, fit

LOSSES = ("ipo", "sigmoid", "hinge", "kto_pair")


def preference_loss(
    kind: str, chosen: Float[Tensor, " n"], rejected: Float[Tensor, " n"], beta: float
) -> Float[Tensor, " n"]:
    """The loss of each pair, from log-ratios to the reference of the chosen and of the rejected reply.

    "ipo" (Azar et al., 2023, arXiv:2310.12036, eq. 17), "sigmoid" (Rafailov et al., 2023, arXiv:2305.18290, eq. 7),
    "hinge" (Zhao et al., 2023, arXiv:2305.10425), "kto_pair": both replies against the batch's mean of the other.
    """
    gap = chosen - rejected
    if kind == "ipo":
        return (gap - 1 / (2 * beta)).square()
    if kind == "sigmoid":
        return -F.logsigmoid(beta * gap)
    if kind == "hinge":
        return F.relu(1 - beta * gap)
    if kind == "kto_pair":
        base = [v.detach().mean().clamp_min(0) for v in (chosen, rejected)]
        pair = (1 - torch.sigmoid(beta * (chosen - base[1])), 1 - torch.sigmoid(beta * (base[0] - rejected)))
        return (pair[0] + pair[1]) / 2
    raise unknown("loss of CAdvIPO", kind, LOSSES)


@dataclass(frozen=True, kw_only=True)
class CAdvIPO(EmbeddingTrainer):
    """C-AdvIPO: prefer the safe reply at perturbed embeddings, without utility data (Xhonneux et al., 2024, arXiv:
    2405.15589, section 4): ((l+ - l-) - (r+ - r-) - 1 / (2 beta))^2.

    l are mean log-probabilities of the safe (+) and the harmful (-) reply with the attack's delta, r those of the
    reference on clean prompts, made once. Log-probabilities of single tokens below ``logp_floor`` in the harmful reply,
    and above -``toward_cutoff`` in the safe one, count 0 (official code). The reference is the model that training
    starts from, in evaluation mode. ``loss``: "ipo", "sigmoid", "hinge" or "kto_pair" (preference_loss).
    """

    contract: ClassVar[bool] = False

    epochs: int = 20
    beta: float = 0.25
    logp_floor: float = -5.0
    toward_cutoff: float = 0.0
    loss: Literal["ipo", "sigmoid", "hinge", "kto_pair"] = "ipo"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss of CAdvIPO", str(self.loss), LOSSES)
        if not self.beta > 0:
            raise InputError(f"CAdvIPO: beta={self.beta}; expected a number above 0")

    def logps(self, model: nn.Module, batch: Replies, safe: bool, delta: Tensor | None = None) -> Float[Tensor, " n"]:
        """The mean log-probability of each reply, over its tokens, those beyond the cutoffs counting 0."""
        logp = target_logps(reply_logits(model, batch, delta), batch.labels)
        beyond: Bool[Tensor, "n t"] = logp > -self.toward_cutoff if safe else logp < self.logp_floor
        count = (batch.labels[:, 1:] != IGNORED).sum(1)
        return logp.masked_fill(beyond, 0.0).sum(1) / count

    @torch.no_grad()
    def reference(self, model: nn.Module, safe: Replies, harmful: Replies) -> Float[Tensor, "n 2"]:
        """r+ and r- of each pair, on clean prompts."""
        with evaluating(model):
            parts = []
            for rows in torch.arange(len(safe)).split(256):
                pair = ((safe[rows], True), (harmful[rows], False))
                parts.append(torch.stack([self.logps(model, b.to(device_of(model)), s).cpu() for b, s in pair], 1))
        return torch.cat(parts)

    def losses(
        self, model: nn.Module, safe: Replies, harmful: Replies, reference: Float[Tensor, "n 2"]
    ) -> dict[str, Tensor]:
        """loss, and the mean log-ratios of the chosen and the rejected replies."""
        delta = self.delta(model, harmful)
        chosen = self.logps(model, safe, True, placed(delta, safe)) - reference[:, 0]
        rejected = self.logps(model, harmful, False, delta) - reference[:, 1]
        loss = preference_loss(self.loss, chosen, rejected, self.beta).mean()
        return {"loss": loss, "chosen": chosen.mean(), "rejected": rejected.mean()}

    def fit(  # type: ignore[override]
        self, model: nn.Module, safe: Replies, harmful: Replies, *, seed: int, **options: Any
    ) -> nn.Module:
        """A trained copy of ``model``, from safe and harmful replies to the same prompts."""
        same_prompts("CAdvIPO", safe, harmful)
        device, before = device_of(model), self.reference(model, safe, harmful)

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            rows = batch.fields["row"].cpu()
            return self.losses(net, safe[rows].to(device), harmful[rows].to(device), before[rows].to(device))["loss"]

        return fit(model, self.schedule_of(len(safe), 0, 1.0, seed), objective, self.plan(), seed=seed, **options)
