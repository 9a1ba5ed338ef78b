"""How alike two captions are: by shared words, or by embeddings where there is an encoder of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError

Embed = Callable[[list[str]], Tensor]


def caption_similarity(a: Sequence[str], b: Sequence[str], embed: Embed | None = None) -> Float[np.ndarray, " n"]:
    """Pairwise similarity (n,) of captions: F1 of their words, as multisets, in [0, 1].

    With ``embed`` (texts -> (n, d), CLIP's text encoder in Lapid and Sipper, 2023, arXiv:2306.07591) the cosine of the
    embeddings, in [-1, 1]. Two empty captions are alike. Raises InputError for lists of different lengths, none, or
    embeddings of another shape.
    """
    _check(a, b)
    if embed is not None:
        left, right = embed(list(a)), embed(list(b))
        if left.shape != right.shape or left.dim() != 2 or len(left) != len(a):
            raise InputError(f"captions: embeddings of shape {tuple(left.shape)}; expected ({len(a)}, d)")
        return F.cosine_similarity(left, right).detach().cpu().double().numpy()
    return np.array([_f1(s.split(), t.split()) for s, t in zip(a, b, strict=True)])


def bleu(candidates: Sequence[str], references: Sequence[str], order: int = 4) -> Float[np.ndarray, " n"]:
    """BLEU of each candidate against its one reference (Papineni et al., 2002), in [0, 1], without smoothing.

    The geometric mean of the clipped precisions of 1- to ``order``-grams, times exp(1 - r / c) where the candidate's
    c words are fewer than the reference's r; 0 where a precision is 0 or the candidate has fewer words than ``order``.
    """
    _check(candidates, references)
    if order < 1:
        raise InputError(f"bleu: order is {order}; expected at least 1")
    return np.array([_bleu(c.split(), r.split(), order) for c, r in zip(candidates, references, strict=True)])


def _check(a: Sequence[str], b: Sequence[str]) -> None:
    if isinstance(a, str) or isinstance(b, str) or len(a) != len(b) or not len(a):
        raise InputError("captions: expected two lists of texts, equally long and not empty")


def _f1(s: list[str], t: list[str]) -> float:
    shared = sum((Counter(s) & Counter(t)).values())
    return 2 * shared / (len(s) + len(t)) if s or t else 1.0


def _bleu(c: list[str], r: list[str], order: int) -> float:
    logs = []
    for k in range(1, order + 1):
        have, want = (Counter(zip(*(words[i:] for i in range(k)), strict=False)) for words in (c, r))
        shared, total = sum((have & want).values()), sum(have.values())
        if not shared:
            return 0.0
        logs.append(math.log(shared / total))
    return math.exp(sum(logs) / order + min(0.0, 1 - len(r) / len(c)))
