"""What captioners share: the words, captions as tokens and as text, and the loss that they are trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, batched, device_of, evaluating

MEAN, STD = 0.5, 0.5  # pixels in [0, 1] go to the encoder as (x - 0.5) / 0.5, as ViT-GPT2's processor has it


class Captioner(nn.Module):
    """Images (n, ch, h, w) in [0, 1] to captions of at most ``length`` words.

    Tokens are int64: a word's place in ``words``, then ``start`` = len(words), which opens a caption, and ``end``,
    which closes and fills it: rows of length + 1 after the start. A subclass states ``forward`` and ``generate``.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        super().__init__()
        if len(set(words)) != len(words) or not words or length < 1:
            raise InputError(f"captioner: {len(words)} words, length {length}; expected distinct words, length >= 1")
        self.words, self.length = tuple(words), length
        self.start, self.end = len(words), len(words) + 1

    def forward(self, x: Float[Tensor, "n ch h w"], tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t v"]:
        """Logits of the token after each of ``tokens``, which begin with ``start``."""
        raise TypeError(f"{type(self).__name__} states no forward pass")

    def generate(self, x: Float[Tensor, "n ch h w"], beams: int) -> Int[Tensor, "n t"]:
        """The likeliest tokens after the start, without sampling, filled with ``end``."""
        raise TypeError(f"{type(self).__name__} states no generation")

    def caption(self, x: Float[Tensor, "n ch h w"], *, beams: int = 1, batch_size: int = BATCH) -> Int[Tensor, "n t"]:
        """Captions as tokens (n, length + 1) on the CPU, in evaluation mode; ``beams`` widens the search."""
        if x.dim() != 4 or len(x) == 0 or beams < 1:
            raise InputError(f"captioner: x {tuple(x.shape)}, beams {beams}; expected (n, ch, h, w), n and beams >= 1")
        with evaluating(self):
            return batched(lambda z: self.generate(z, beams), x, batch_size=batch_size, device=device_of(self))

    def loss(self, x: Float[Tensor, "n ch h w"], tokens: Int[Tensor, "n t"]) -> Float[Tensor, ""]:
        """Mean cross-entropy of the tokens (n, length + 1), each told those before it."""
        opened = torch.cat((torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]), 1)
        return F.cross_entropy(self(x, opened).flatten(0, 1), tokens.flatten())

    def text(self, tokens: Int[Tensor, "n t"]) -> list[str]:
        """Captions as text: the words before the first ``end``."""
        rows = [row[: row.index(self.end)] if self.end in row else row for row in tokens.tolist()]
        return [" ".join(self.words[t] for t in row if t != self.start) for row in rows]

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "n t"]:
        """Texts as tokens (n, length + 1). Raises InputError for an unknown word or too many."""
        place = {word: k for k, word in enumerate(self.words)}
        rows = []
        for text in texts:
            words = text.split()
            for word in words:
                if word not in place:
                    raise unknown("word", word, self.words)
            if len(words) > self.length:
                raise InputError(f"caption {text!r}: {len(words)} words; expected at most {self.length}")
            rows.append([place[w] for w in words] + [self.end] * (self.length + 1 - len(words)))
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.length + 1)
