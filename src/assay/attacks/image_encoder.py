"""The image encoder inside an encoder-decoder model, and the embedding that is read from what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError

Pool = Literal["pooler", "cls", "mean", "tokens"] | Callable[[Any], Tensor]
POOLS = ("pooler", "cls", "mean", "tokens")
TOWERS = ("vision_model", "vision_tower", "image_encoder")


def find_image_encoder(model: nn.Module) -> nn.Module:
    """The part of ``model`` that sees the image; ``model`` itself where it has no decoder.

    It is ``model.encoder`` beside a ``model.decoder`` (VisionEncoderDecoderModel), or ``vision_model`` (BLIP),
    ``vision_tower`` or ``image_encoder``; a wrapper's ``model.model`` is searched too. Raises InputError where
    ``model`` is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"find_image_encoder: the model is {type(model).__name__}; expected a torch module")
    children = dict(model.named_children())
    if "decoder" in children and "encoder" in children:
        return children["encoder"]
    for name in TOWERS:
        if name in children:
            return children[name]
    return find_image_encoder(children["model"]) if "model" in children else model


def embedding(output: Any, pool: Pool) -> Float[Tensor, "n t d"]:
    """What an encoder returned, as t vectors of d numbers a sample: one, or one a token where ``pool`` is "tokens".

    ``output`` is a tensor (n, d) or (n, t, d), or what transformers return: (hidden states, pooled, ...), by name or by
    position. "pooler" is the pooled output, index 1 (Lapid and Sipper, 2023, arXiv:2306.07591), and the first token
    where there is none; "cls" the first token; "mean" the mean of the tokens. A callable makes a tensor of ``output``.
    Raises InputError where no tensor of these shapes comes of it.
    """
    found: Any
    if callable(pool):
        found = pool(output)
    elif isinstance(output, Tensor):
        found = _from_hidden(output, pool)
    else:
        parts = tuple(output) if isinstance(output, tuple | list) else ()
        hidden = getattr(output, "last_hidden_state", parts[0] if parts else None)
        second = parts[1] if len(parts) > 1 else None
        pooled = getattr(output, "pooler_output", second)
        usable = isinstance(pooled, Tensor) and pooled.dim() == 2
        found = pooled if pool == "pooler" and usable else _from_hidden(hidden, pool)
    if not isinstance(found, Tensor) or found.dim() not in (2, 3):
        kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"image encoder: its output for pool {pool!r} is {kind}; expected a tensor (n, d) or (n, t, d)"
        )
    return found[:, None] if found.dim() == 2 else found


def _from_hidden(hidden: Any, pool: str) -> Any:
    if not isinstance(hidden, Tensor) or hidden.dim() != 3 or pool == "tokens":
        return hidden
    return hidden.mean(1) if pool == "mean" else hidden[:, 0]
