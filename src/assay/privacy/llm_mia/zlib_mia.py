"""The loss of a language model against how well a text can be compressed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.privacy.llm_mia.base import Texts
from assay.privacy.llm_mia.loss_mia import LossMIA


@dataclass(frozen=True)
class ZlibMIA(LossMIA):
    """Score = -L(x) / the bytes of zlib's compression of x (Carlini et al., 2021, arXiv:2012.07805, section 5.2).

    Of the pre-trained model it is that paper's attack. The text is x where it was given as strings, else what the
    tokenizer makes of the ids; InputError where there is neither.
    """

    def statistic(self, texts: Texts) -> Float[Tensor, " n"]:
        size = [len(zlib.compress(s.encode())) for s in self.strings(texts)]
        return super().statistic(texts) / torch.tensor(size, dtype=torch.float64)


@dataclass(frozen=True)
class ZlibLoRaMIA(ZlibMIA):
    """FLoRa without a base model: zlib's compression stands in for it, and ``model`` is the fine-tuned one (zlibLoRa
    of Wang et al., 2024, arXiv:2402.17012; the ratio is that of the official code, L(x; fine-tuned) / zlib(x))."""
