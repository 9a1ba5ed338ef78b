"""Plain texts, and texts as data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.data.data import Data
from assay.data.guarded import check_expansion
from assay.runtime.errors import InputError


def load_text(name: str) -> str:
    """The text ``$ASSAY_DATA/text/NAME.txt`` (UTF-8), such as "tinyshakespeare". Raises InputError where it is not."""
    path = Path(os.environ.get("ASSAY_DATA", "")) / "text" / f"{name}.txt"
    if not path.is_file():
        raise InputError(f"text {name!r}: no {str(path)!r}; expected it there (set ASSAY_DATA)")
    return path.read_text(encoding="utf-8")


CODE_POINTS = 0x10FFFF


@dataclass(frozen=True)
class TextData(Data):
    """Data whose samples are texts: x (n, longest) float32 holds their Unicode code points, zeros behind the end.

    So a text is a tensor wherever samples are tensors; ``decoded(x)`` gives the strings that a tokeniser takes.
    """


def encoded(texts: Sequence[str]) -> Float[Tensor, "n longest"]:
    """Texts as rows of code points, exact in float32; a text that holds the character NUL is refused."""
    empty = next((i for i, t in enumerate(texts) if not t or "\0" in t), None)
    if empty is not None:
        raise InputError(f"texts: row {empty + 1} is {texts[empty]!r}; expected text without the character NUL")
    longest = max(map(len, texts), default=0)
    check_expansion("texts", 4 * len(texts) * longest, sum(map(len, texts)))
    x = np.zeros((len(texts), longest), np.float32)
    for row, text in zip(x, texts, strict=True):
        row[: len(text)] = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return torch.from_numpy(x)


def decoded(x: Float[Tensor, "n longest"]) -> list[str]:
    """The texts that ``encoded`` made these rows from."""
    points = x.detach().cpu().numpy().astype(np.uint32)
    return [row.tobytes().decode("utf-32-le", "surrogatepass").rstrip("\0") for row in points]


def text_data(texts: Sequence[str], y: Int[Tensor, " n"], classes: tuple[str, ...], name: str) -> TextData:
    """Texts and their labels as Data."""
    return TextData(encoded(texts), y, classes, (0.0, float(CODE_POINTS)), name)
