"""Adversarial unlikelihood training on embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.language.embedding_attack import EmbeddingAttack
from assay.language.replies import IGNORED, Replies, reply_logits, same_prompts, target_logps, token_logps
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of
from assay.runtime.random import derive, torch_rng
from assay.training import State, Trainer, fit


def bounded(value: Float[Tensor, ""], cutoff: float, continuous: bool = False) -> Float[Tensor, ""]:
    """``value`` down to ``cutoff``, and below it a slope of 0.001: cutoff + 0.001 value, as in the official code, or
    ``continuous``, without its jump by 0.001 cutoff: cutoff + 0.001 (value - cutoff)."""
    flat = cutoff + 0.001 * (value - cutoff if continuous else value)
    return torch.where(value < cutoff, flat, value)


def placed(delta: Float[Tensor, "n t d"], batch: Replies) -> Float[Tensor, "n u d"]:
    """The same delta for other replies to the same prompts; it is 0 after the prompt."""
    width = batch.ids.shape[1]
    wide = delta.new_zeros(len(batch), width, delta.shape[2])
    keep = min(width, delta.shape[1])
    wide[:, :keep] = delta[:, :keep]
    return wide


@dataclass(frozen=True, kw_only=True)
class EmbeddingTrainer(Trainer):
    """What C-AdvUL and C-AdvIPO share: the attack, and batches of adversarial and utility rows.

    They train on replies, not on a subject's labelled data, so they are no trainers that a repair could name.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    attack: EmbeddingAttack = EmbeddingAttack()
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 2e-4

    def delta(self, model: nn.Module, harmful: Replies) -> Float[Tensor, "n t d"]:
        """The perturbation that makes the harmful replies likely for the present model."""
        return self.attack.attack(model, harmful)

    def schedule_of(self, adversarial: int, utility: int, share: float, seed: int) -> Data:
        """Rows by kind, so that the share of adversarial ones is ``share``: all of these, utility ones drawn."""
        total = round(adversarial * (1 - share) / share) if utility else 0
        rows = torch.randint(max(utility, 1), (total,), generator=torch_rng(seed, "utility"))
        kind = torch.cat((torch.ones(adversarial), torch.zeros(total))).long()
        row = torch.cat((torch.arange(adversarial), rows))
        x = torch.zeros(len(row), 1)
        return Data(x, kind, ("utility", "adversarial"), name="prompts", fields={"row": row})


@dataclass(frozen=True, kw_only=True)
class CAdvUL(EmbeddingTrainer):
    """C-AdvUL: away from harmful replies, toward safe ones, at perturbed embeddings (Xhonneux et al., 2024, arXiv:
    2405.15589, section 4): 0.5 L_away + 0.5 L_toward + 1.0 L_utility.

    With the delta of ``attack`` against the present model on the harmful reply, added for both: L_away = -CE(harmful),
    L_toward = CE(safe), each held back below its cutoff (``bounded``; the official code's jump stays unless
    ``continuous``). ``away_loss`` "log1mp": the mean over tokens of -log(1 - p), those with log p below ``away_cutoff``
    left out. L_utility is the CE of utility replies, clean. ``share`` of the rows are adversarial: 12.5%.
    A model that peft has wrapped trains its adapters alone.
    """

    contract: ClassVar[bool] = False

    epochs: int = 5
    away_weight: float = 0.5
    toward_weight: float = 0.5
    utility_weight: float = 1.0
    away_cutoff: float = -5.0
    toward_cutoff: float = 0.5
    away_loss: Literal["neg_ce", "log1mp"] = "neg_ce"
    continuous: bool = False
    share: float = 0.125

    def __post_init__(self) -> None:
        if self.away_loss not in ("neg_ce", "log1mp"):
            raise unknown("away_loss of CAdvUL", str(self.away_loss), ("neg_ce", "log1mp"))
        if not 0 < self.share <= 1:
            raise InputError(f"CAdvUL: share={self.share}; expected a share in (0, 1]")

    def away(self, logits: Float[Tensor, "n t v"], batch: Replies) -> Float[Tensor, ""]:
        """The loss that falls as the harmful replies get unlikely."""
        if self.away_loss == "neg_ce":
            return bounded(token_logps(logits, batch.labels).mean(), self.away_cutoff, self.continuous)
        logp, real = target_logps(logits, batch.labels), batch.labels[:, 1:] != IGNORED
        kept = real & (logp.detach() >= self.away_cutoff)
        loss = -torch.log((1 - logp.exp()).clamp_min(1e-6))
        return (loss * kept).sum() / real.sum()

    def losses(
        self, model: nn.Module, adversarial: tuple[Replies, Replies] | None, utility: Replies | None
    ) -> dict[str, Tensor]:
        """loss, away, toward and utility of a batch; ``adversarial``: (safe, harmful) replies to the same prompts."""
        zero = next(model.parameters()).new_zeros(())
        parts = {"away": zero, "toward": zero, "utility": zero}
        if adversarial is not None:
            safe, harmful = adversarial
            delta = self.delta(model, harmful)
            parts["away"] = self.away(reply_logits(model, harmful, delta), harmful)
            toward = -token_logps(reply_logits(model, safe, placed(delta, safe)), safe.labels).mean()
            parts["toward"] = bounded(toward, self.toward_cutoff, self.continuous)
        if utility is not None:
            parts["utility"] = -token_logps(reply_logits(model, utility), utility.labels).mean()
        weights = {"away": self.away_weight, "toward": self.toward_weight, "utility": self.utility_weight}
        loss = sum((weights[k] * v for k, v in parts.items()), start=zero)
        return {"loss": loss, **parts}

    def fit(  # type: ignore[override]
        self, model: nn.Module, safe: Replies, harmful: Replies, utility: Replies, *, seed: int, **options: Any
    ) -> nn.Module:
        """A trained copy of ``model``, from safe and harmful replies to the same prompts and from utility replies."""
        same_prompts("CAdvUL", safe, harmful)
        data, device = self.schedule_of(len(safe), len(utility), self.share, derive(seed, "rows")), device_of(model)

        def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
            rows: Mapping[int, Tensor] = {k: batch.fields["row"][batch.y == k].cpu() for k in (0, 1)}
            pair = (safe[rows[1]].to(device), harmful[rows[1]].to(device)) if len(rows[1]) else None
            return self.losses(net, pair, utility[rows[0]].to(device) if len(rows[0]) else None)["loss"]

        return fit(model, data, objective, self.plan(), seed=seed, **options)
