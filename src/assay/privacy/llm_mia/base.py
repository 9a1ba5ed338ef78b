"""What membership inference on texts shares: tokens with a mask, and the losses that a causal language model gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import batched, device_of, evaluating


@dataclass(frozen=True)
class Texts:
    """``ids`` (n, t) int64, ``mask`` (n, t): which of them are real tokens, and the ``strings`` where known."""

    ids: Int[Tensor, "n t"]
    mask: Bool[Tensor, "n t"]
    strings: tuple[str, ...] | None = None


def vocabulary(model: nn.Module) -> int:
    """How many tokens a causal model of transformers knows; InputError for a model without input embeddings."""
    get = getattr(model, "get_input_embeddings", None)
    table = getattr(get() if get is not None else None, "weight", None)
    if not isinstance(table, Tensor):
        raise InputError(f"{type(model).__name__}: no input embeddings; expected a causal model of transformers")
    return len(table)


def encode(strings: Sequence[str], tokenizer: Any, who: str) -> Texts:
    """Each string as the tokenizer's ``input_ids``, padded on the right with a mask."""
    if tokenizer is None:
        raise InputError(f"{who}: x holds strings and there is no tokenizer; expected tokenizer=...")
    rows = [torch.as_tensor(tokenizer(s)["input_ids"], dtype=torch.int64) for s in strings]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    length = torch.tensor([len(r) for r in rows])
    return Texts(ids, torch.arange(ids.shape[1])[None] < length[:, None], tuple(strings))


def as_texts(
    x: Tensor | Sequence[str], attention_mask: Tensor | None, tokenizer: Any, model: nn.Module, who: str
) -> Texts:
    """Checked tokens: at least two real ones a row, padding on the right alone, so that it changes no causal output.

    InputError for other shapes or types, ids outside the vocabulary, more tokens than the model's configuration gives
    positions, and a padding token without an attention mask.
    """
    size = vocabulary(model)
    if not isinstance(x, Tensor):
        if not len(x):
            raise InputError(f"{who}: x is empty; expected at least one text")
        if attention_mask is not None:
            raise InputError(f"{who}: an attention mask for strings; expected it with token ids only")
        found = encode(x, tokenizer, who)
    else:
        if x.dtype != torch.int64 or x.dim() != 2 or x.shape[0] < 1:
            raise InputError(f"{who}: x is {x.dtype} {tuple(x.shape)}; expected int64 (n, t), n >= 1")
        pad = getattr(getattr(model, "config", None), "pad_token_id", None)
        if attention_mask is None and pad is not None and bool((x == pad).any()):
            raise InputError(f"{who}: x has the padding token {pad} and no attention mask; expected a mask of (n, t)")
        found = Texts(
            x.cpu(), torch.ones_like(x, device="cpu") > 0 if attention_mask is None else attention_mask.cpu() > 0
        )
    ids, mask = found.ids, found.mask
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None) or ids.shape[1]
    if ids.shape[1] > longest > 0:
        raise InputError(f"{who}: texts of {ids.shape[1]} tokens; expected at most {longest}, which the model reads")
    if mask.shape != ids.shape or bool((~mask[:, :-1] & mask[:, 1:]).any()):
        raise InputError(
            f"{who}: mask {tuple(mask.shape)} for ids {tuple(ids.shape)}; expected padding on the right only"
        )
    if int(mask.sum(1).min()) < 2:
        raise InputError(f"{who}: a text of {int(mask.sum(1).min())} tokens; expected at least 2")
    real = ids[mask]
    if int(real.min()) < 0 or int(real.max()) >= size:
        raise InputError(f"{who}: ids span [{int(real.min())}, {int(real.max())}]; expected 0 to {size - 1}")
    return found


def next_losses(logits: Float[Tensor, "n t v"], ids: Int[Tensor, "n t"]) -> Float[Tensor, "n t-1"]:
    """Cross-entropy (nats) of every token but the first given what precedes it, in float32 or better."""
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.transpose(1, 2), ids[:, 1:], reduction="none")


def mean_loss(losses: Float[Tensor, "n t-1"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """The mean over each row's real tokens but the first."""
    counted = mask[:, 1:].to(losses.dtype)
    return (losses * counted).sum(1) / counted.sum(1)


def token_losses(model: nn.Module, texts: Texts, batch_size: int) -> Float[Tensor, "n t-1"]:
    """``next_losses`` of all texts in evaluation mode, float64 on the CPU, 0 at padding. InputError if not finite."""

    def losses(ids: Tensor, mask: Tensor) -> Tensor:
        return next_losses(model(input_ids=ids).logits, ids).double() * mask[:, 1:]

    with evaluating(model):
        found = batched(losses, texts.ids, texts.mask, batch_size=batch_size, device=device_of(model))
    if not torch.isfinite(found).all():
        bad = int((~torch.isfinite(found)).any(1).sum())
        raise InputError(
            f"{type(model).__name__}: losses of {bad} of {len(found)} texts are not finite; expected finite"
        )
    return found


def text_losses(model: nn.Module, texts: Texts, batch_size: int) -> Float[Tensor, " n"]:
    """L(x): the mean next-token cross-entropy of each text, nats, float64 on the CPU."""
    return mean_loss(token_losses(model, texts, batch_size), texts.mask)


@dataclass(frozen=True)
class TextInference:
    """A membership-inference attack on texts. A subclass names its ``model`` fields, and states ``statistic``.

    ``tokenizer`` turns strings to ids (``tokenizer(text)["input_ids"]``) and back (``batch_decode``), as those of
    transformers do; it is needed only where texts are given, or asked for, as strings. Models are run in evaluation
    mode and stay as they are. No attention mask is handed to them: padding lies on the right, and they are causal.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    _: KW_ONLY
    tokenizer: Any = None
    batch_size: int = 32

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The models that are asked; they share a vocabulary."""
        raise TypeError(f"{type(self).__name__} names no models")

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        """The score of checked texts, higher is more likely a member."""
        raise TypeError(f"{type(self).__name__} states no statistic")

    def score(self, x: Int[Tensor, "n t"] | Sequence[str], attention_mask: Tensor | None = None) -> Float[Tensor, " n"]:
        """How likely each text was trained on: (n,) float64 on the CPU, higher is more likely.

        x: token ids, or strings. attention_mask (n, t): 1 at real tokens, 0 at the padding behind them. InputError for
        models of different vocabularies and for texts that ``as_texts`` refuses.
        """
        return self.statistic(self.texts(x, attention_mask))

    def texts(self, x: Int[Tensor, "n t"] | Sequence[str], attention_mask: Tensor | None = None) -> Texts:
        """The checked tokens."""
        who, models = type(self).__name__, self.models
        sizes = [vocabulary(m) for m in models]
        if len(set(sizes)) > 1:
            raise InputError(f"{who}: vocabularies of {sizes} tokens; expected the same of all models")
        return as_texts(x, attention_mask, self.tokenizer, models[0], who)

    def strings(self, texts: Texts) -> list[str]:
        """The texts as strings."""
        if texts.strings is not None:
            return list(texts.strings)
        if self.tokenizer is None:
            raise InputError(f"{type(self).__name__}: token ids and no tokenizer; expected strings or tokenizer=...")
        rows = [row[keep].tolist() for row, keep in zip(texts.ids, texts.mask, strict=True)]
        return list(self.tokenizer.batch_decode(rows))
