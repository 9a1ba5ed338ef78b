"""The loss of a language model as evidence of membership."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.privacy.llm_mia.base import TextInference, Texts, text_losses


@dataclass(frozen=True)
class LossMIA(TextInference):
    """Score = -L(x), the mean next-token cross-entropy in nats (Yeom et al., 2018, arXiv:1709.01604).

    ``model``: a causal model of transformers. Score in (-inf, 0]. Errors: see TextInference.
    """

    model: nn.Module

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        return -text_losses(self.model, texts, self.batch_size)
