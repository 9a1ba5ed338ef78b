"""What unlearners of causal language models share: the run over replies to forget, beside replies to retain."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.language.replies import IGNORED, Replies, embedding, reply_logits, target_logps
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of
from assay.training import Plan, State
from assay.training.engine import Player, fit_players


def mean_nll(model: nn.Module, batch: Replies) -> Float[Tensor, ""]:
    """Cross-entropy in nats, the mean over all target tokens of the batch: the loss that transformers' models give."""
    logp = target_logps(reply_logits(model, batch), batch.labels)
    return -logp.sum() / (batch.labels[:, 1:] != IGNORED).sum()


@dataclass(frozen=True, kw_only=True)
class ReplyUnlearner:
    """``forget(model, forget, retain, *, seed) -> model``: a copy of a causal model of transformers that should no
    longer give the replies ``forget``. A subclass states ``forget_loss``, and ``retain_loss_of`` where it has one.

    ``epochs`` over ``forget`` by AdamW at ``lr`` after a warm-up over the share ``warmup`` of the steps, then falling
    linearly to 0: the protocol of TOFU (Maini et al., 2024, arXiv:2401.06121). Every step takes with each reply to
    forget one to retain, drawn at random. The input model is not changed; its copy trains in training mode, what it is
    compared with stays in evaluation mode. InputError for a model without input embeddings or with float16 parameters
    to train, whose steps by Adam are not finite, and without ``retain`` where it is needed.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    epochs: int = 5
    steps: int | None = None
    batch_size: int = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 1e-5
    weight_decay: float = 0.01
    warmup: float = 0.2
    schedule: Literal["constant", "cosine", "linear"] = "linear"

    def plan(self) -> Plan:
        """The training plan that the fields describe."""
        names = ("epochs", "steps", "batch_size", "optimizer", "lr", "weight_decay", "warmup", "schedule")
        return Plan(**{n: getattr(self, n) for n in names})

    def trained(self, model: nn.Module) -> list[Tensor]:
        """The parameters that move: all of them."""
        return list(model.parameters())

    @property
    def retains(self) -> bool:
        """Whether the replies to retain are used."""
        return False

    @property
    def compares(self) -> bool:
        """Whether a copy of the model as it was is kept beside."""
        return False

    def forget_loss(
        self, model: nn.Module, reference: nn.Module | None, batch: Replies, *, seed: int
    ) -> Float[Tensor, ""]:
        """The loss on replies to forget."""
        raise TypeError(f"{type(self).__name__} states no forget_loss")

    def losses(
        self, model: nn.Module, reference: nn.Module | None, forget: Replies, retain: Replies | None, *, seed: int = 0
    ) -> dict[str, Tensor]:
        """loss and its parts, of a batch of each set."""
        part = self.forget_loss(model, reference, forget, seed=seed)
        return {"loss": part, "forget": part}

    def forget(
        self, model: nn.Module, forget: Replies, retain: Replies | None = None, *, seed: int, **options: Any
    ) -> nn.Module:
        """A trained copy of ``model``; ``options``: hooks and checkpoint, as in training.fit."""
        embedding(model)
        if any(p.dtype == torch.float16 for p in self.trained(model)):
            raise InputError(f"{type(self).__name__}: parameters are float16; expected bfloat16, float32 or float64")
        if self.retains and retain is None:
            raise InputError(f"{type(self).__name__}: no replies to retain; expected some (or alpha = 0)")
        device, held = device_of(model), retain if self.retains else None
        reference = copy.deepcopy(model).eval().requires_grad_(False) if self.compares else None
        zeros = torch.zeros(len(forget))
        table = Data(zeros[:, None], zeros.long(), ("forget", "retain"), name="replies to forget")

        def objective(models: Mapping[str, nn.Module], batch: Batch, state: State) -> Tensor:
            rows, other = batch.index.cpu(), None
            if held is not None:
                other = held[state.draws("retain", rows).integers(len(held), 1)[:, 0]].to(device)
            return self.losses(models["model"], reference, forget[rows].to(device), other, seed=seed)["loss"]

        player = Player(model=model, objective=objective, plan=self.plan(), parameters=self.trained)
        return fit_players({"model": player}, table, seed=seed, **options)["model"]
