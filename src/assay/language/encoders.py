"""What turns a word and its original into features: small networks over characters or bytes, and that of TrOCR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating
from assay.runtime.spec import rebuildable

TROCR = "microsoft/trocr-base-handwritten"


@rebuildable
class CellEncoder(nn.Module):
    """Features (n, t, width) of words written in t squares of ``cell`` pixels: the same layers for every square.

    Takes (n, 2, cell, cell * t), the corrupted word over the original one (WordRenderer.cells): as in a vision
    transformer every patch becomes a token, here without attention, which the legibility of a word does not need when
    its characters lie over those that they stand for.
    """

    def __init__(self, cell: int = 16, width: int = 64) -> None:
        super().__init__()
        self.cell, self.width = cell, width
        self.first = nn.Linear(3 * cell * cell, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "n 2 s w"]) -> Float[Tensor, "n t d"]:
        tokens = x.unflatten(3, (-1, self.cell)).permute(0, 3, 1, 2, 4).flatten(3)
        corrupted, original = tokens[:, :, 0], tokens[:, :, 1]
        hidden = torch.cat((corrupted, original, (corrupted - original).abs()), 2)
        return F.relu(self.second(F.relu(self.first(hidden))))


@rebuildable
class ByteEncoder(nn.Module):
    """Features (n, t, width) of UTF-8 text, which takes (n, 1, 1, t) bytes over 255: embeddings, two convolutions.

    A text model over bytes, as ByT5 is, without its pretraining.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Embedding(256, width)
        self.first = nn.Conv1d(width, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, x: Float[Tensor, "n 1 1 t"]) -> Float[Tensor, "n t d"]:
        tokens = self.embed((x[:, 0, 0] * 255).round().long()).transpose(1, 2)
        return F.relu(self.second(F.relu(self.first(tokens)))).transpose(1, 2)


def as_bytes(texts: Sequence[str], length: int) -> Float[Tensor, "n 1 1 t"]:
    """UTF-8 bytes over 255, zeros after the end; InputError for texts of more than ``length`` bytes."""
    raw = [text.encode() for text in texts]
    longest = max(map(len, raw))
    if longest > length:
        raise InputError(f"LegibilityModel: text of {longest} bytes; expected at most {length}")
    rows = np.frombuffer(b"".join(r.ljust(length, b"\0") for r in raw), np.uint8).reshape(len(raw), 1, 1, length)
    return torch.from_numpy(rows.astype(np.float32) / 255)


class LegibilityNet(nn.Module):
    """Scores (n,) of pictures (n, c, h, w) in [0, 1]: encoder, mean over its tokens, two linear layers (released code).

    The encoder gives features (n, ``width``) or (n, t, ``width``), or an object with such a ``last_hidden_state``;
    a ``centred`` one sees pictures in [-1, 1].
    """

    def __init__(self, encoder: nn.Module, width: int, centred: bool = False) -> None:
        super().__init__()
        self.model, self.centred = encoder, centred
        self.stack = nn.Sequential(
            nn.Dropout(0), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0), nn.Linear(width, 1)
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        found: Any = self.model(2 * x - 1 if self.centred else x)
        tokens = getattr(found, "last_hidden_state", found)
        return self.stack(tokens.mean(1) if tokens.dim() == 3 else tokens)[:, 0]


def trocr_encoder(name: str = TROCR) -> nn.Module:
    """The vision encoder of a TrOCR checkpoint, by its name on the hub or its folder; InputError without it."""
    try:
        from transformers import VisionEncoderDecoderModel
    except ImportError as error:
        raise InputError("backbone 'trocr': transformers is not installed; expected the extra 'hf'") from error
    try:
        return VisionEncoderDecoderModel.from_pretrained(name).encoder
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"backbone 'trocr': {name!r} cannot be loaded ({reason}); expected a hub name or folder"
        ) from error


def width_of(encoder: nn.Module, example: Float[Tensor, "1 c h w"]) -> int:
    """The number of features that an encoder gives; InputError where they are not (n, d) or (n, t, d)."""
    with evaluating(encoder), torch.no_grad():
        found: Any = encoder(example)
    tokens = getattr(found, "last_hidden_state", found)
    if not isinstance(tokens, Tensor) or tokens.dim() not in (2, 3):
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"LegibilityModel: the backbone gives {shape}; expected features (n, d) or (n, t, d)")
    return tokens.shape[-1]
