"""The attack on the embeddings of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import Ball, Bounds
from assay.attacks.base import Goal
from assay.attacks.engine import Climb, GradientAttack, Memory
from assay.language.replies import Replies, context_of, embedding, table_of, token_logps, widened
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws

EVERYWHERE = (-float("inf"), float("inf"))


@dataclass(frozen=True)
class TokenL2(Ball):
    """The Euclidean norm of every token's displacement (n, t, d) is at most eps."""

    def norm(self, delta: Float[Tensor, "n t d"]) -> Float[Tensor, " n"]:
        return delta.norm(dim=2).amax(1)

    def project(self, z: Float[Tensor, "n t d"], x: Float[Tensor, "n t d"], bounds: Bounds) -> Float[Tensor, "n t d"]:
        delta = z - x
        least = max(1e-30, torch.finfo(z.dtype).tiny)
        return x + delta * (self.eps / delta.norm(dim=2, keepdim=True).clamp_min(least)).clamp_max(1)


@dataclass(frozen=True)
class Said(Goal):
    """The reply of each row is the likeliest; the outputs are its mean log-probability (n,)."""

    labels_: Int[Tensor, "n t"]

    def check(self, where: str, n: int, classes: int | None = None) -> None:
        if len(self.labels_) != n:
            raise InputError(f"{where}: {len(self.labels_)} replies; expected {n}")

    def met(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        return torch.zeros_like(outputs, dtype=torch.bool)


class _Answering(nn.Module):
    """A language model as a map from embeddings (n, t, d) to the mean log-probability (n,) of the replies."""

    def __init__(self, model: nn.Module, batch: Replies) -> None:
        super().__init__()
        self.model, self.batch = model, batch

    def forward(self, e: Float[Tensor, "n t d"]) -> Float[Tensor, " n"]:
        logits = self.model(inputs_embeds=e, **context_of(self.model, self.batch)).logits
        return token_logps(logits, self.batch.labels)


@dataclass(frozen=True, kw_only=True)
class Descent(GradientAttack):
    """The engine's view of EmbeddingAttack: ascent of the log-probability, on the tokens of ``mask`` (n, t, 1)."""

    early_stop: bool = False
    random_start: bool = False
    bounds: tuple[float, float] = EVERYWHERE
    mask: Tensor
    rule: Literal["sign", "adam", "rmsprop"]
    lr: float

    def objective(self, logits: Float[Tensor, " n"], goal: Goal) -> Float[Tensor, " n"]:
        return logits

    def length(self, step: int) -> float:
        return self.lr

    def direction(self, grad: Tensor, z: Tensor, memory: Memory, step: int) -> Tensor:
        if self.rule == "sign":
            return grad.sign() * self.mask
        decay, root = (0.999, 1e-8) if self.rule == "adam" else (0.99, 1e-8)
        dtype, grad = grad.dtype, widened(grad)
        memory["square"] = decay * memory.get("square", torch.zeros_like(grad)) + (1 - decay) * grad.square()
        if self.rule == "rmsprop":
            return (grad / (memory["square"].sqrt() + root)).to(dtype) * self.mask
        memory["mean"] = 0.9 * memory.get("mean", torch.zeros_like(grad)) + 0.1 * grad
        mean, square = memory["mean"] / (1 - 0.9 ** (step + 1)), memory["square"] / (1 - decay ** (step + 1))
        return (mean / (square.sqrt() + root)).to(dtype) * self.mask


@dataclass(frozen=True, kw_only=True)
class EmbeddingAttack:
    """Move the embeddings of a prompt until a reply gets likely (Xhonneux et al., 2024, arXiv:2405.15589, section 3).

    delta starts at 0 and takes ``steps`` steps down the cross-entropy of the reply: ``optimizer`` "sign" (lr x the sign
    of the gradient), "adam" or "rmsprop" at rate ``lr``; after each, every token's delta is brought back to a norm of
    ``eps``, in units of the mean norm of the embeddings where ``relative_eps``. The last iterate is returned. Only
    tokens of the prompt move: all, or the last ``suffix`` where ``location`` is "suffix" (placeholders that the caller
    appends). The model is run in evaluation mode and left as it was. InputError for other options.
    """

    kind: ClassVar[str] = "function"

    eps: float = 0.05
    steps: int = 10
    lr: float = 1e-4
    relative_eps: bool = True
    optimizer: Literal["sign", "adam", "rmsprop"] = "sign"
    location: Literal["prompt", "suffix"] = "prompt"
    suffix: int = 20

    def __post_init__(self) -> None:
        if not self.eps >= 0 or self.steps < 0 or not self.lr > 0 or self.suffix < 1:
            found = f"eps={self.eps}, steps={self.steps}, lr={self.lr}, suffix={self.suffix}"
            raise InputError(f"EmbeddingAttack: {found}; expected eps, steps >= 0, lr > 0, suffix >= 1")
        for name, choices in {"optimizer": ("sign", "adam", "rmsprop"), "location": ("prompt", "suffix")}.items():
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of EmbeddingAttack", str(getattr(self, name)), choices)

    def radius(self, model: nn.Module) -> float:
        """The norm that no token's delta exceeds."""
        return self.eps * float(table_of(model).norm(dim=1).mean()) if self.relative_eps else self.eps

    def moved(self, batch: Replies) -> Bool[Tensor, "n t"]:
        """The tokens that move."""
        if self.location == "prompt":
            return batch.prompt
        left = batch.prompt.flip(1).cumsum(1).flip(1)
        return batch.prompt & (left <= self.suffix)

    def attack(self, model: nn.Module, batch: Replies) -> Float[Tensor, "n t d"]:
        """delta (n, t, d) that makes the replies of ``batch`` likelier; 0 outside the prompt."""
        table = embedding(model)
        with evaluating(model):
            with torch.no_grad():
                e = table(batch.ids)
            climb = Climb(self.descent(model, batch), _Answering(model, batch), e, Said(batch.labels),
                          Draws(0, "embedding", torch.arange(len(e), device=e.device)))  # fmt: skip
            climb.run(verify=False)
        return (climb.x_adv - e).detach()

    def descent(self, model: nn.Module, batch: Replies) -> GradientAttack:
        """What the engine runs."""
        mask = self.moved(batch)[..., None].to(table_of(model).dtype)
        ball = TokenL2(self.radius(model))
        return Descent(ball=ball, steps=self.steps, mask=mask, rule=self.optimizer, lr=self.lr)
