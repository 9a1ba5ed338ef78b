"""The loss after fine-tuning over the loss before."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.privacy.llm_mia.base import TextInference, Texts, text_losses
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class FLoRaMIA(TextInference):
    """Score = -L(x; ``ft_model``) / L(x; ``base_model``), the fine-tuned loss ratio (Wang et al., 2024,
    arXiv:2402.17012): texts that were fine-tuned on have lost more than their difficulty would say.

    Both are causal models of transformers with one vocabulary. Score in (-inf, 0], -1 where the models are equal.
    InputError where the base loss of a text is 0; further errors: see TextInference.
    """

    ft_model: nn.Module
    base_model: nn.Module

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return self.ft_model, self.base_model

    def reference(self, texts: Texts) -> Float[Tensor, " n"]:
        """L(x; base), the difficulty of each text."""
        base = text_losses(self.base_model, texts, self.batch_size)
        if bool((base == 0).any()):
            raise InputError(f"FLoRaMIA: the base loss of {int((base == 0).sum())} texts is 0; expected more")
        return base

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        return -text_losses(self.ft_model, texts, self.batch_size) / self.reference(texts)
