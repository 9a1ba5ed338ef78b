"""The loss after a gradient step on the text over the loss before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap

from assay.privacy.llm_mia.base import TextInference, Texts
from assay.privacy.llm_mia.sample_gradients import loss_of, quiet, weights_of
from assay.runtime.errors import InputError
from assay.runtime.inference import batched, device_of, evaluating


@dataclass(frozen=True)
class ALoRaMIA(TextInference):
    """Score = ``sign`` L(x; theta') / L(x; theta) with theta' = theta - ``lr`` grad L(x; theta), the approximate loss
    ratio for texts of pre-training (Wang et al., 2024, arXiv:2402.17012; the rate is the official code's).

    What was trained on is fitted already, so a step lowers its loss relatively less: ``sign`` 1. The paper's code reads
    the ratio the other way round (-1), so the sign is to be set on held-out texts: ``oriented``. Each text takes its
    own step from the same weights, which never change. ``model``: a causal model of transformers. InputError for
    another sign or a negative rate, and where a loss is 0.
    """

    model: nn.Module
    lr: float = field(default=5e-5, kw_only=True)
    sign: Literal[1, -1] = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.sign not in (1, -1) or not self.lr >= 0:
            raise InputError(f"ALoRaMIA: sign={self.sign}, lr={self.lr}; expected sign 1 or -1 and lr >= 0")

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return (self.model,)

    def ratio(self, texts: Texts) -> Float[Tensor, " n"]:
        """L(x; theta') / L(x; theta)."""
        with evaluating(self.model), quiet():
            weights = weights_of(self.model)
            loss = partial(loss_of, self.model)

            def one(ids: Tensor, mask: Tensor) -> Tensor:
                slope = grad(loss)(weights, ids, mask)
                # Both losses on the same path, so that no step gives the same number to the last bit.
                at = [{k: w - rate * slope[k] for k, w in weights.items()} for rate in (self.lr, 0.0)]
                return torch.stack([loss(w, ids, mask) for w in at])

            pairs = batched(
                vmap(one), texts.ids, texts.mask, batch_size=self.batch_size, device=device_of(self.model)
            ).double()
        if not torch.isfinite(pairs).all() or bool((pairs[:, 1] == 0).any()):
            raise InputError("ALoRaMIA: a loss is 0 or not finite; expected finite positive losses")
        return pairs[:, 0] / pairs[:, 1]

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        return self.sign * self.ratio(texts)

    def oriented(self, members: Tensor, nonmembers: Tensor) -> ALoRaMIA:
        """The attack with the sign under which held-out ``members`` score higher than ``nonmembers`` on average."""
        inside, outside = (self.ratio(self.texts(x)).mean() for x in (members, nonmembers))
        return replace(self, sign=1 if inside >= outside else -1)
