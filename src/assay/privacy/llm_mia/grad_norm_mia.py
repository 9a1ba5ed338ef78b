"""The norm of a text's gradient as evidence of membership."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.privacy.llm_mia.base import TextInference, Texts
from assay.privacy.llm_mia.sample_gradients import embedding_gradients, weight_gradients
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, device_of, evaluating


@dataclass(frozen=True)
class GradNormMIA(TextInference):
    """Score = -||grad L(x)||_p (GradNorm of Wang et al., 2024, arXiv:2402.17012): low for what was trained on.

    ``where``: "embedding", the gradient in the text's input embeddings (n, t, d), not in their table; "all", that in
    all parameters (tied ones once); or a parameter's name. ``p`` is 1, 2 or inf. Each gradient is of one text; as many
    as ``batch_size`` are in memory. ``model``: a causal model of transformers. Warns where a gradient overflows (half
    precision) and scores it -inf; InputError for other p and names.
    """

    model: nn.Module
    p: float = field(default=2, kw_only=True)
    where: str = field(default="embedding", kw_only=True)

    def __post_init__(self) -> None:
        if self.p not in (1, 2, math.inf):
            raise InputError(f"GradNormMIA: p={self.p}; expected 1, 2 or inf")
        names = [name for name, _ in self.model.named_parameters()]
        if self.where not in ("embedding", "all", *names):
            raise unknown("gradient of GradNormMIA", self.where, ("embedding", "all", *names))

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def norms(self, ids: Tensor, mask: Tensor) -> Float[Tensor, " n"]:
        """The norms of one batch: over all parameters it is the norm of their norms."""
        if self.where == "embedding":
            return embedding_gradients(self.model, ids, mask).double().flatten(1).norm(self.p, dim=1)
        names = None if self.where == "all" else (self.where,)
        found = weight_gradients(self.model, ids, mask, names).values()
        return torch.stack([g.double().flatten(1).norm(self.p, dim=1) for g in found], 1).norm(self.p, dim=1)

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        with evaluating(self.model):
            device = device_of(self.model)
            found = batched(self.norms, texts.ids, texts.mask, batch_size=self.batch_size, device=device)
        if not torch.isfinite(found).all():
            bad = int((~torch.isfinite(found)).sum())
            warnings.warn(
                f"GradNormMIA: the gradients of {bad} texts overflow; scored -inf", RuntimeWarning, stacklevel=3
            )
        return -found.nan_to_num(nan=math.inf, posinf=math.inf)
