"""Two encoders whose embeddings are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError

Inputs = Tensor | Mapping[str, Tensor]


class DualEncoder(nn.Module):
    """Scores (b, m) of b queries with m documents: cosines ("cos") or inner products ("dot") of two embeddings.

    An encoder maps a tensor to (n, d), or tokens (a mapping with ``attention_mask`` (n, t)) to an output with
    ``last_hidden_state`` (n, t, d), as Hugging Face's models do: the mean over the tokens that the mask keeps. One
    module given twice shares its weights. Raises InputError for another score and embeddings of unequal width.
    """

    def __init__(self, query_encoder: nn.Module, doc_encoder: nn.Module, score: Literal["cos", "dot"] = "cos") -> None:
        super().__init__()
        if score not in ("cos", "dot"):
            raise InputError(f"DualEncoder: score={score!r}; expected 'cos' or 'dot'")
        self.query_encoder, self.doc_encoder, self.score = query_encoder, doc_encoder, score

    def forward(self, queries: Inputs, documents: Inputs) -> Float[Tensor, "b m"]:
        q, d = embed(self.query_encoder, queries), embed(self.doc_encoder, documents)
        if q.dim() != 2 or d.dim() != 2 or q.shape[1] != d.shape[1]:
            raise InputError(f"DualEncoder: embeddings {tuple(q.shape)}, {tuple(d.shape)}; expected (b, k) and (m, k)")
        if self.score == "cos":
            q, d = F.normalize(q, dim=1), F.normalize(d, dim=1)
        return q @ d.T


def embed(encoder: nn.Module, inputs: Inputs) -> Float[Tensor, "n d"]:
    """The encoder's embeddings, averaged over tokens where it gives one a token."""
    out: Any = encoder(**inputs) if isinstance(inputs, Mapping) else encoder(inputs)
    hidden = getattr(out, "last_hidden_state", None)
    if hidden is None:
        return out
    if not isinstance(inputs, Mapping) or "attention_mask" not in inputs:
        raise InputError("DualEncoder: tokens without an attention_mask; expected one of shape (n, t)")
    weight = inputs["attention_mask"].to(hidden.dtype)[:, :, None]
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)
