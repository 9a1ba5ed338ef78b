"""A captioner small enough to train in seconds: a vision transformer before a causal decoder, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable
from assay.vision.captioner import MEAN, STD, Captioner


@rebuildable
class TinyViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929): (hidden (n, 1 + patches, d), pooled (n, d)).

    The first token is the class token; pooled is the tanh of a linear map of it, as in transformers' ViTModel.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 16, 16),
        patch: int = 4,
        width: int = 48,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if shape[1] % patch or shape[2] % patch:
            raise InputError(f"TinyViT: images of {shape[1]} x {shape[2]}; expected multiples of patch = {patch}")
        count = 1 + (shape[1] // patch) * (shape[2] // patch)
        self.patches = nn.Conv2d(shape[0], width, patch, patch)
        self.first = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, count, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n ch h w"]) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n d"]]:
        tokens = self.patches(x).flatten(2).mT
        hidden = self.body(torch.cat((self.first.expand(len(x), -1, -1), tokens), 1) + self.position)
        return hidden, self.pooler(hidden[:, 0]).tanh()


class TextDecoder(nn.Module):
    """Causal transformer that attends to an image's tokens: (tokens (n, t), memory (n, m, d)) -> logits (n, t, v)."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(1, length, width))
        layer = nn.TransformerDecoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Int[Tensor, "n t"], memory: Float[Tensor, "n m d"]) -> Float[Tensor, "n t v"]:
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        hidden = self.embed(tokens) + self.position[:, :length]
        return self.head(self.body(hidden, memory, tgt_mask=later))


@rebuildable
class TinyCaptioner(Captioner):
    """``encoder`` (TinyViT) and ``decoder``; the decoder reads all tokens of the encoder, not its pooled output."""

    def __init__(
        self,
        words: Sequence[str],
        length: int = 3,
        shape: tuple[int, int, int] = (1, 16, 16),
        patch: int = 4,
        width: int = 48,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__(words, length)
        self.encoder = TinyViT(shape, patch, width, layers, heads)
        self.decoder = TextDecoder(len(self.words) + 2, length + 1, width, 1, heads)

    def forward(self, x: Float[Tensor, "n ch h w"], tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t v"]:
        return self.decoder(tokens, self.encoder((x - MEAN) / STD)[0])

    def generate(self, x: Float[Tensor, "n ch h w"], beams: int) -> Int[Tensor, "n t"]:
        if beams > 1:
            raise InputError(f"TinyCaptioner: beams is {beams}; expected 1, it decodes greedily")
        memory = self.encoder((x - MEAN) / STD)[0]
        tokens = torch.full((len(x), 1), self.start, device=x.device)
        for _ in range(self.length + 1):
            following = self.decoder(tokens, memory)[:, -1].argmax(1, keepdim=True)
            over = (tokens == self.end).any(1, keepdim=True)
            tokens = torch.cat((tokens, following.masked_fill(over, self.end)), 1)
        return tokens[:, 1:]
