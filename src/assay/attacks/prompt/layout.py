"""Where the free tokens of an adversarial prompt stand."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from assay.runtime.errors import InputError, unknown

POSITIONS = ("prefix", "suffix", "replace", "add", "mid", "insert", "per_k_words")
STRIDE = 3  # words after each free token of "per_k_words"


def layout(length: int, count: int, k: int, position: str) -> Int[Tensor, " l"]:
    """Which of the own tokens 0 to l - 1 of a prompt, or of the k free ones l to l + k - 1, stands in each place.

    A prompt is its first token, ``count`` words, and from its end on padding, of which k places are given up, so that
    the length stays: "prefix" and "suffix" put the free tokens before and after the words, "mid" in their middle,
    "insert" one after each of k equal runs, "per_k_words" one before every third word; "replace" has no words left;
    "add" moves nothing (the free vectors are added to the words). InputError where they do not fit.
    """
    if position not in POSITIONS:
        raise unknown("position of free tokens", position, POSITIONS)
    if count + k > length - 2:
        raise InputError(f"prompt: {count} tokens and {k} free ones; expected at most {length - 2} together")
    own, free, end = list(range(1, 1 + count)), list(range(length, length + k)), 1 + count
    rest = list(range(end, length - k))
    half, run = count // 2, count // (k + 1)
    if position == "add":
        return torch.arange(length)
    if position == "prefix":
        middle = free + own
    elif position == "suffix":
        middle = own + free
    elif position == "replace":
        middle = free + [end] * count
    elif position == "mid":
        middle = own[:half] + free + own[half:]
    else:
        size = run if position == "insert" else STRIDE
        runs = [own[size * i : size * (i + 1)] for i in range(k - 1)] + [own[size * (k - 1) :]]
        if position == "insert":
            runs[-1] = own[size * (k - 1) : size * k]
            middle = [t for part, f in zip(runs, free, strict=True) for t in (*part, f)] + own[size * k :]
        else:
            middle = [t for part, f in zip(runs, free, strict=True) for t in (f, *part)]
    return torch.tensor([0, *middle, *rest])
