"""Prompts with their replies as token ids, and what a causal language model makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError

IGNORED = -100  # the label of tokens that are no target, as in transformers


@dataclass(frozen=True)
class Replies:
    """``ids`` (n, t) int64; ``labels`` (n, t): the ids of the reply, -100 elsewhere; ``attention`` (n, t): no padding.

    Padding may be on either side. InputError unless shapes and types agree, every row has a target, and every target is
    attended to and comes after a token that is.
    """

    ids: Int[Tensor, "n t"]
    labels: Int[Tensor, "n t"]
    attention: Bool[Tensor, "n t"]

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.ids, self.labels, self.attention)}
        if len(shapes) > 1 or self.ids.dim() != 2 or self.ids.dtype != torch.int64 or not len(self.ids):
            raise InputError(f"replies: shapes {sorted(shapes)}, ids {self.ids.dtype}; expected int64 (n, t), n >= 1")
        if self.attention.dtype != torch.bool:
            raise InputError(f"replies: attention is {self.attention.dtype}; expected bool, False at padding")
        targets = self.targets
        if not targets.any(1).all():
            raise InputError(
                f"replies: {int((~targets.any(1)).sum())} rows without a target; expected one or more each"
            )
        if (targets & ~self.attention).any():
            raise InputError("replies: a target that is padding; expected attention at every token of a reply")
        if (targets & (self.attention.cumsum(1) == 1)).any():
            raise InputError("replies: a reply without a prompt; expected at least one token before it")

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], pad: int = 0) -> Replies:
        """From lists of tokens, padded on the right with ``pad``."""
        if len(prompts) != len(replies) or not prompts:
            raise InputError(f"replies: {len(prompts)} prompts, {len(replies)} replies; expected as many, at least one")
        rows = [(list(p), list(r)) for p, r in zip(prompts, replies, strict=True)]
        longest = max(len(p) + len(r) for p, r in rows)
        gaps = [longest - len(p) - len(r) for p, r in rows]
        ids = [p + r + [pad] * g for (p, r), g in zip(rows, gaps, strict=True)]
        labels = [[IGNORED] * len(p) + r + [IGNORED] * g for (p, r), g in zip(rows, gaps, strict=True)]
        real = [[True] * (longest - g) + [False] * g for g in gaps]
        return cls(torch.tensor(ids), torch.tensor(labels), torch.tensor(real))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Replies:
        """The rows that a mask, positions or a slice selects."""
        return Replies(self.ids[rows], self.labels[rows], self.attention[rows])

    @property
    def targets(self) -> Bool[Tensor, "n t"]:
        """The tokens of the replies. Token id 0 is one like any other."""
        return self.labels != IGNORED

    @property
    def prompt(self) -> Bool[Tensor, "n t"]:
        """The tokens of the prompts: attended to, and no target."""
        return self.attention & ~self.targets

    def to(self, device: torch.device) -> Replies:
        """The same on ``device``."""
        return Replies(self.ids.to(device), self.labels.to(device), self.attention.to(device))


def same_prompts(where: str, a: Replies, b: Replies) -> None:
    """InputError unless two sets of replies answer the same prompts, token by token in the same places."""
    width = min(a.ids.shape[1], b.ids.shape[1])
    inside = a.prompt[:, :width]
    same = len(a) == len(b) and int(a.prompt.sum()) == int(b.prompt.sum()) == int(inside.sum())
    if not (same and inside.equal(b.prompt[:, :width]) and a.ids[:, :width][inside].equal(b.ids[:, :width][inside])):
        raise InputError(f"{where}: the two replies have other prompts; expected the same tokens in the same places")


def embedding(model: nn.Module) -> nn.Module:
    """The model's input embeddings; InputError for a model that has none."""
    get = getattr(model, "get_input_embeddings", None)
    found = get() if get is not None else None
    if not isinstance(found, nn.Module):
        raise InputError(f"{type(model).__name__}: no input embeddings; expected a causal model of transformers")
    return found


def table_of(model: nn.Module) -> Float[Tensor, "v d"]:
    """The vectors of all tokens, without a gradient."""
    table = embedding(model).weight
    assert isinstance(table, Tensor)
    return table.detach()


def reply_logits(
    model: nn.Module, batch: Replies, delta: Float[Tensor, "n t d"] | None = None
) -> Float[Tensor, "n t v"]:
    """Logits of every next token, with ``delta`` added to the output of the input embeddings."""
    e = embedding(model)(batch.ids)
    return model(inputs_embeds=e if delta is None else e + delta, **context_of(model, batch)).logits


def context_of(model: nn.Module, batch: Replies) -> dict[str, Int[Tensor, "n t"]]:
    """The arguments that say what is padding: the attention mask and, where rows begin with padding, the places of the
    tokens counted from the first one that is none, which many models take from the column otherwise."""
    mask = {"attention_mask": batch.attention.long()}
    whole = getattr(model, "get_base_model", lambda: model)()  # peft passes on what its model takes
    if batch.attention[:, 0].all() or "position_ids" not in inspect.signature(whole.forward).parameters:
        return mask
    return mask | {"position_ids": (batch.attention.cumsum(1) - 1).clamp_min(0)}


def widened(t: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Half precision as float32, everything else as it is."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def next_logps(logits: Float[Tensor, "n t v"]) -> Float[Tensor, "n t-1 v"]:
    """Log-probabilities of the tokens after each but the last, in float32 or better: sums of them over a reply in half
    precision are off by tenths of a nat."""
    return widened(logits[:, :-1]).log_softmax(2)


def target_logps(logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"]) -> Float[Tensor, "n t-1"]:
    """The log-probability of each target token given what precedes it; 0 for tokens that are none."""
    nxt = labels[:, 1:]
    logp = next_logps(logits).gather(2, nxt.clamp_min(0)[..., None])[..., 0]
    return logp.masked_fill(nxt == IGNORED, 0.0)


def token_logps(
    logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"], average: bool = True
) -> Float[Tensor, " n"]:
    """Log-probability (nats) of each reply, the mean over its tokens or their sum.

    logits (n, t, v) predict the next token; labels (n, t) are -100 where there is no target. InputError for a row
    without one.
    """
    count = (labels[:, 1:] != IGNORED).sum(1)
    if not count.all():
        raise InputError("token_logps: a row without a target; expected at least one label other than -100")
    total = target_logps(logits, labels).sum(1)
    return total / count if average else total


@torch.no_grad()
def complies(model: nn.Module, batch: Replies, delta: Tensor | None = None) -> Bool[Tensor, " n"]:
    """Whether greedy decoding gives exactly the reply: every target token is the likeliest one after those before."""
    guess = reply_logits(model, batch, delta)[:, :-1].argmax(2)
    nxt = batch.labels[:, 1:]
    return ((guess == nxt) | (nxt == IGNORED)).all(1)
