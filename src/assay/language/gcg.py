"""The discrete attack by greedy coordinate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.language.replies import Replies, context_of, embedding, reply_logits, table_of, token_logps
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class GCG:
    """Greedy coordinate gradient (Zou et al., 2023, arXiv:2307.15043, algorithm 1), one suffix for each prompt.

    The prompts end with ``suffix`` placeholder tokens. In each of ``steps`` rounds the gradient of the reply's loss by
    the one-hot tokens gives the ``topk`` best substitutes of every place; of ``candidates`` suffixes, each with one
    place changed to one of its substitutes, both drawn at random, the best takes over. What is returned are the best
    tokens seen. ``allowed``: how many of the first token ids may be used (None: all). ``batch_size``: how many suffixes
    the model reads at once. InputError where prompts are shorter than the suffix.
    """

    kind: ClassVar[str] = "function"

    suffix: int = 20
    steps: int = 500
    topk: int = 256
    candidates: int = 512
    allowed: int | None = None
    batch_size: int = 4096

    def __post_init__(self) -> None:
        if (
            min(self.suffix, self.topk, self.candidates, self.batch_size, 1 if self.allowed is None else self.allowed)
            < 1
            or self.steps < 0
        ):
            raise InputError(f"GCG: {self}; expected suffix, topk, candidates, allowed, batch_size >= 1, steps >= 0")

    def attack(self, model: nn.Module, batch: Replies, *, seed: int) -> Int[Tensor, "n t"]:
        """The ids (n, t) of the prompts with their suffixes replaced, and the replies as they were."""
        n = len(batch)
        if int(batch.prompt.sum(1).min()) <= self.suffix:
            raise InputError(
                f"GCG: prompts of {int(batch.prompt.sum(1).min())} tokens; expected more than {self.suffix}"
            )
        left = batch.prompt.flip(1).cumsum(1).flip(1)
        places = (batch.prompt & (left <= self.suffix)).nonzero()[:, 1].view(n, self.suffix)
        draws = Draws(seed, "gcg", torch.arange(n, device=batch.ids.device))
        ids, best = batch.ids.clone(), batch.ids.clone()
        with evaluating(model):
            lowest = self.losses(model, batch, ids[:, None])[:, 0]
            for _ in range(self.steps):
                tokens = self.substitutes(model, batch, ids, places)
                tried = self.proposals(ids, places, tokens, draws)
                losses = self.losses(model, batch, tried)
                value, pick = losses.min(1)
                ids = tried[torch.arange(n), pick]
                best = torch.where((value < lowest)[:, None], ids, best)
                lowest = torch.minimum(value, lowest)
        return best

    def substitutes(
        self, model: nn.Module, batch: Replies, ids: Int[Tensor, "n t"], places: Int[Tensor, "n m"]
    ) -> Int[Tensor, "n m k"]:
        """The tokens whose one-hot coordinates have the most negative gradients, at every place."""
        table = table_of(model)[: self.allowed]
        e = embedding(model)(ids).detach().requires_grad_()
        with torch.enable_grad():
            logits = model(inputs_embeds=e, **context_of(model, batch)).logits
            (grad,) = torch.autograd.grad(token_logps(logits, batch.labels).sum(), e)
        at = grad.gather(1, places[..., None].expand(-1, -1, grad.shape[2]))
        return (at @ table.T).topk(min(self.topk, len(table)), 2).indices

    def proposals(
        self, ids: Int[Tensor, "n t"], places: Int[Tensor, "n m"], tokens: Int[Tensor, "n m k"], draws: Draws
    ) -> Int[Tensor, "n b t"]:
        """``candidates`` copies of each row, each with one token of the suffix exchanged."""
        where = draws.integers(self.suffix, self.candidates)
        which = draws.integers(tokens.shape[2], self.candidates)
        token = tokens.gather(1, where[..., None].expand(-1, -1, tokens.shape[2])).gather(2, which[..., None])
        copies = ids[:, None].repeat(1, self.candidates, 1)
        return copies.scatter_(2, places.gather(1, where)[..., None], token)

    @torch.no_grad()
    def losses(self, model: nn.Module, batch: Replies, ids: Int[Tensor, "n b t"]) -> Float[Tensor, "n b"]:
        """Mean cross-entropy of the replies after each candidate."""
        b = ids.shape[1]
        labels, attention = (t.repeat_interleave(b, 0) for t in (batch.labels, batch.attention))
        rows = Replies(ids.flatten(0, 1), labels, attention)
        parts = [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
        return -torch.cat([token_logps(reply_logits(model, part), part.labels) for part in parts]).view(-1, b)
