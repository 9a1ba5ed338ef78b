"""The last layer of a language model from its logits, and a text's gradient in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.privacy.llm_mia.base import as_texts
from assay.privacy.llm_mia.gradient_features import SEED, projected
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, device_of, evaluating

TOLERANCE = 1e-5  # of the largest singular value: what lies below is rounding


@dataclass(frozen=True)
class FittedModelStealing:
    """``head_`` (v, r): U S of the stolen layer, equal to the model's own up to a change of basis of the hidden state;
    ``singular_values_`` (min(v, n),) of the logits."""

    head_: Float[Tensor, "v r"]
    singular_values_: Float[Tensor, " s"]
    model: nn.Module
    attack: ModelStealing

    def latents(self, logits: Float[Tensor, "n t v"]) -> Float[Tensor, "n t r"]:
        """The hidden states in the stolen basis: the least-squares solution of head_ h = logits."""
        flat = logits.to(self.head_.dtype).flatten(0, 1).T
        return torch.linalg.lstsq(self.head_.to(logits.device), flat).solution.T.unflatten(0, logits.shape[:2])

    def gradient(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "n v r"]:
        """Each text's gradient of L in head_: the sum over positions of dL/dlogits times the latent."""
        logits = self.model(input_ids=ids).logits.double()
        slope = logits[:, :-1].softmax(2)
        slope.scatter_add_(2, ids[:, 1:, None], -torch.ones_like(ids[:, 1:, None], dtype=slope.dtype))
        counted = mask[:, 1:].to(slope.dtype)
        slope = slope * (counted / counted.sum(1, keepdim=True))[..., None]
        return torch.einsum("ntv,ntr->nvr", slope, self.latents(logits[:, :-1]))

    def features(
        self, x: Int[Tensor, "n t"] | Sequence[str], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "n f"]:
        """The inf-, 1- and 2-norm of that gradient and ``dim`` random projections of it: (n, 3 + dim) float64."""

        def told(ids: Tensor, mask: Tensor) -> Tensor:
            flat = self.gradient(ids, mask).flatten(1)
            norms = torch.stack([flat.norm(p, dim=1) for p in (math.inf, 1, 2)], 1)
            return torch.cat((norms, projected(flat, self.attack.dim, "rademacher", self.attack.seed, "head")), 1)

        texts = as_texts(x, attention_mask, self.attack.tokenizer, self.model, "ModelStealing")
        with evaluating(self.model):
            device = device_of(self.model)
            return batched(told, texts.ids, texts.mask, batch_size=self.attack.batch_size, device=device)


@dataclass(frozen=True, kw_only=True)
class ModelStealing:
    """Gray-box features: the output layer is recovered from logits by a singular value decomposition (Carlini et al.,
    2024, arXiv:2403.06634, section 4), and the gradient in it needs logits alone (Wang et al., 2024, arXiv:2402.17012).

    The logits at the last token of n queries, n above the hidden width, span a space of the hidden width r; ``rank``
    None reads r off the singular values. ``dim`` projections come from ``seed``. InputError where the queries do not
    show the rank.
    """

    kind: ClassVar[str] = "function"

    rank: int | None = None
    dim: int = 512
    seed: int = SEED
    batch_size: int = 32
    tokenizer: Any = None

    def fit(
        self, model: nn.Module, x: Int[Tensor, "n t"] | Sequence[str], attention_mask: Tensor | None = None
    ) -> FittedModelStealing:
        """The stolen layer, from the answers of ``model``, a causal model of transformers, to the queries x."""
        texts = as_texts(x, attention_mask, self.tokenizer, model, "ModelStealing")

        def last(ids: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = model(input_ids=ids).logits
            return logits[torch.arange(len(ids)), mask.sum(1) - 1].double()

        with evaluating(model):
            answers = batched(last, texts.ids, texts.mask, batch_size=self.batch_size, device=device_of(model))
        left, values, _ = torch.linalg.svd(answers.T, full_matrices=False)
        rank = int((values > TOLERANCE * values[0]).sum()) if self.rank is None else self.rank
        if not 0 < rank < len(values):
            raise InputError(f"ModelStealing: rank {rank} of {len(values)} singular values; expected more queries")
        return FittedModelStealing(left[:, :rank] * values[:rank], values, model, self)
