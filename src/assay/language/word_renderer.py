"""Words as pictures."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from assay.language.fonts import MISSING, load_font
from assay.runtime.errors import InputError

GAP = "  "


@dataclass(frozen=True, kw_only=True)
class WordRenderer:
    """Black words on white (Seth et al., 2023, arXiv:2303.05077; the Renderer of their released code).

    ``font``: "unifont" (the paper's), "dejavu", "pillow", a path, or None for the first of these that is there;
    ``size`` pixels. ``render`` is the released picture: the corrupted word, two blanks and the original word, 10 pixels
    from the left. ``cells`` is not from the paper: every character in the middle of a square of its own, so that the
    characters of two words of one length lie over each other in any font.
    """

    kind: ClassVar[str] = "function"

    font: str | None = None
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"WordRenderer: size={self.size}; expected at least 1 pixel")
        if self.font is not None:
            load_font(self.font, self.size)

    def render(self, corrupted: str, original: str = "") -> Float[Tensor, "3 h w"]:
        """(3, size + 8, w) in [0, 1], 1 is white; w is the text's length and 20 pixels. An empty word is refused."""
        if not corrupted:
            raise InputError("WordRenderer: the word is empty; expected at least one character")
        font, text = load_font(self.font, self.size), corrupted + GAP + original
        picture = Image.new("RGB", (math.ceil(font.getlength(text)) + 20, self.size + 8), "white")
        ImageDraw.Draw(picture).text((10, 0), text, font=font, fill="black")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    def glyphs(self, chars: Sequence[str]) -> Float[Tensor, "n s s"]:
        """Each character in a square of ``size`` pixels, ink is 1; what is wider than it is cut off on both sides."""
        if not chars or any(len(c) != 1 for c in chars):
            raise InputError("WordRenderer: glyphs of no or of several characters; expected a list of single ones")
        return torch.from_numpy(np.stack([_glyph(self.font, self.size, c) for c in chars])).float() / 255

    def cells(self, words: Sequence[str], length: int) -> Float[Tensor, "n s sl"]:
        """Words in a row of ``length`` squares, (n, size, size * length), ink is 1; shorter ones end in empty squares.

        Raises InputError for no words, and for empty ones or ones of more than ``length`` characters.
        """
        if not words or not all(0 < len(w) <= length for w in words):
            sizes = sorted({len(w) for w in words})
            raise InputError(f"WordRenderer: words of {sizes} characters; expected 1 to {length} each")
        chars = sorted(set("".join(words)) | {" "})
        place = {c: i for i, c in enumerate(chars)}
        rows = torch.tensor([[place[c] for c in w.ljust(length)] for w in words])
        return self.glyphs(chars)[rows].transpose(1, 2).flatten(2)

    def draws(self, char: str) -> bool:
        """Whether the font has a glyph of its own for a character that stands alone: no mark, control or blank."""
        if unicodedata.category(char)[0] in "MCZ" or unicodedata.bidirectional(char) in ("R", "AL"):
            return False
        glyph = _glyph(self.font, self.size, char)
        return bool(glyph.any()) and not np.array_equal(glyph, _glyph(self.font, self.size, MISSING))


@lru_cache(maxsize=65536)
def _glyph(font: str | None, size: int, char: str) -> np.ndarray:
    """(size, size) uint8, 255 is ink: 3/4 of ``size`` high, centred, on one base line."""
    picture = Image.new("L", (size, size))
    drawn = load_font(font, max(size * 3 // 4, 1))
    ImageDraw.Draw(picture).text((size / 2, size * 3 // 4), char, font=drawn, fill=255, anchor="ms")
    array = np.array(picture)
    array.flags.writeable = False
    return array
