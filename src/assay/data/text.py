"""Plain texts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from assay.data.data import Data
from assay.runtime.errors import InputError


@dataclass(frozen=True)
class TextData(Data):
    """Texts with labels, for models that tokenise: x (n, 1) holds the place of each sample's text in ``texts``."""

    texts: tuple[str, ...] = ()

    @property
    def strings(self) -> list[str]:
        """The text of each sample."""
        return [self.texts[int(row)] for row in self.x[:, 0]]

    @cached_property
    def hash(self) -> str:
        """Content hash over texts, labels, indices, fields and metadata."""
        h = hashlib.sha256(repr((self.classes, self.strings)).encode())
        for _, t in sorted({"y": self.y, "index": self.index, **self.fields}.items()):
            h.update(t.contiguous().numpy().tobytes())
        return h.hexdigest()


def text_data(texts: Sequence[str], y: Sequence[int], classes: Sequence[str], name: str = "texts") -> TextData:
    """Data of ``texts``, a label in [0, len(classes)) for each. InputError where there is none or they do not match."""
    if not texts:
        raise InputError(f"data {name!r} is empty; expected at least one text")
    x = torch.arange(len(texts), dtype=torch.float32)[:, None]
    bounds = (0.0, float(len(texts)))
    return TextData(x, torch.as_tensor(y).long(), tuple(classes), bounds, name, texts=tuple(texts))


def load_text(name: str) -> str:
    """The text ``$ASSAY_DATA/text/NAME.txt`` (UTF-8), such as "tinyshakespeare". Raises InputError where it is not."""
    path = Path(os.environ.get("ASSAY_DATA", "")) / "text" / f"{name}.txt"
    if not path.is_file():
        raise InputError(f"text {name!r}: no {str(path)!r}; expected it there (set ASSAY_DATA)")
    return path.read_text(encoding="utf-8")
