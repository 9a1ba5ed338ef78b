"""A text-to-image diffusion model small enough to be trained in a minute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.random import seeded


class WordTokenizer:
    """One token a word, between a first and a last one, padded with the last one to ``model_max_length`` as CLIP's."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 1

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words, self.model_max_length = tuple(words), length
        self.number = {word: i + 2 for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + 2

    def __call__(self, prompts: Sequence[str], **options: Any) -> SimpleNamespace:
        """``input_ids`` (n, l); InputError for an unknown word or a prompt that is too long."""
        rows = []
        for prompt in prompts:
            found = [self.number.get(word, -1) for word in prompt.split()]
            if -1 in found or len(found) > self.model_max_length - 2:
                room = self.model_max_length - 2
                raise InputError(f"prompt {prompt!r}: expected at most {room} of the words {', '.join(self.words)}")
            rows.append([self.bos_token_id, *found] + [self.eos_token_id] * (self.model_max_length - 1 - len(found)))
        return SimpleNamespace(input_ids=torch.tensor(rows))


class _Layer(nn.Module):
    """A block of a transformer that looks back only, as CLIP's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, ahead: Tensor) -> Tensor:
        h = self.layer_norm1(x)
        x = x + self.self_attn(h, h, h, attn_mask=ahead, need_weights=False)[0]
        return x + self.mlp(self.layer_norm2(x))


class TinyTextEncoder(nn.Module):
    """``encoder(ids (n, l)) -> (n, l, width)``: tokens and positions, causal layers, a last norm."""

    def __init__(self, vocabulary: int, length: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width)

    def get_input_embeddings(self) -> nn.Module:
        """The table of the tokens' vectors."""
        return self.token_embedding

    def forward(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding.weight[:length]
        ahead = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        for layer in self.layers:
            x = layer(x, ahead)
        return self.final_layer_norm(x)


class _Reading(nn.Module):
    """A residual block that is shifted by the time, reads the text by cross-attention, and goes through an MLP."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.shift = nn.LayerNorm(width), nn.LayerNorm(width), nn.Linear(width, width)
        self.attn2 = nn.MultiheadAttention(width, 4, kdim=context, vdim=context, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        query = self.norm1(x + self.shift(time))[:, None]
        x = x + self.attn2(query, text, text, need_weights=False)[0][:, 0]
        return x + self.mlp(self.norm2(x + self.shift(time)))


class TinyConditionNet(nn.Module):
    """``net(z (n, c, h, w), t (n,), encoder_hidden_states (n, l, context)) -> (n, c, h, w)``, in a U-Net's place: on
    flattened pixels, ``blocks`` residual ones of ``width``, a multiple of 4, beside a multiple of z that t sets. t is
    below ``steps``."""

    def __init__(
        self, shape: tuple[int, int, int], context: int, width: int = 192, blocks: int = 3, steps: int = 100
    ) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=shape[0], sample_size=shape[1:])
        size = math.prod(shape)
        self.time = nn.Sequential(nn.Embedding(steps, width), nn.Linear(width, width), nn.SiLU())
        self.gain = nn.Embedding(steps, 1)
        self.enter, self.leave = nn.Linear(size, width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        self.blocks = nn.ModuleList(_Reading(width, context) for _ in range(blocks))
        nn.init.ones_(self.gain.weight)

    def forward(
        self, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"], encoder_hidden_states: Float[Tensor, "n l e"]
    ) -> Float[Tensor, "n c h w"]:
        time, flat = self.time(t), z.flatten(1)
        hidden = self.enter(flat)
        for block in self.blocks:
            hidden = block(hidden, time, encoder_hidden_states)
        return (self.gain(t) * flat + self.leave(hidden)).reshape(z.shape)


@dataclass(frozen=True, eq=False)
class TinyT2I:
    """The parts of a text-to-image pipeline by the names that diffusers gives them; its latents are pixels in [-1, 1].

    ``scheduler.alphas_cumprod`` (T,) is the share of the image in the noisy one's variance after each step; samples are
    cut to [-1, 1] on the way.
    """

    unet: nn.Module
    text_encoder: nn.Module
    tokenizer: WordTokenizer
    scheduler: Any

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        shape: tuple[int, int, int],
        *,
        length: int = 8,
        text_width: int = 64,
        width: int = 192,
        steps: int = 100,
        seed: int = 0,
    ) -> TinyT2I:
        """With random weights. Noise grows linearly from 0.1 / T to 20 / T a step: for T = 1000 from 1e-4 to 2e-2.

        InputError for T = ``steps`` up to 20, where the last step's noise is all there is or more.
        """
        if steps <= 20:
            raise InputError(f"TinyT2I: steps={steps}; expected more than 20, for noise of 20 / steps in the last one")
        tokenizer = WordTokenizer(words, length)
        with seeded(seed, "tiny t2i"):
            encoder = TinyTextEncoder(len(tokenizer), length, text_width)
            unet = TinyConditionNet(shape, text_width, width, steps=steps)
        alphas = (1 - torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)).cumprod(0).float()
        config = SimpleNamespace(prediction_type="epsilon", clip_sample=True, clip_sample_range=1.0)
        scheduler = SimpleNamespace(alphas_cumprod=alphas, config=config)
        return cls(unet.eval(), encoder.eval(), tokenizer, scheduler)
