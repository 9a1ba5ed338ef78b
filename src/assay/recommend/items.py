"""Sequences of items as padded rows, the lists that scores give, and how lists agree with lists and with the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.runtime.errors import InputError

Victim = Callable[[Tensor], Tensor]


def check_sequences(where: str, sequences: Sequence[Tensor], n_items: int) -> None:
    """Raise InputError unless there is a sequence and each is int64 (t,) of items 1 to ``n_items``, t >= 2."""
    if not len(sequences):
        raise InputError(f"{where}: no sequences; expected at least one")
    for k, s in enumerate(sequences):
        if not isinstance(s, Tensor) or s.dtype != torch.int64 or s.dim() != 1 or len(s) < 2:
            kind = f"{s.dtype} of shape {tuple(s.shape)}" if isinstance(s, Tensor) else type(s).__name__
            raise InputError(f"{where}: sequence {k} is {kind}; expected int64 of two items or more")
        if s.min() < 1 or s.max() > n_items:
            raise InputError(f"{where}: sequence {k} spans [{s.min()}, {s.max()}]; expected items 1 to {n_items}")


def check_lists(where: str, lists: Tensor, n: int, k: int, n_items: int) -> None:
    """Raise InputError unless lists are int64 (n, k) of distinct items 1 to ``n_items``."""
    if not isinstance(lists, Tensor) or lists.dtype != torch.int64 or lists.shape != (n, k):
        kind = f"{lists.dtype} of shape {tuple(lists.shape)}" if isinstance(lists, Tensor) else type(lists).__name__
        raise InputError(f"{where}: the lists are {kind}; expected int64 of shape ({n}, {k})")
    if n and (lists.min() < 1 or lists.max() > n_items):
        raise InputError(f"{where}: the lists span [{lists.min()}, {lists.max()}]; expected items 1 to {n_items}")
    if (lists.sort(1).values.diff(dim=1) == 0).any():
        raise InputError(f"{where}: a list names an item twice; expected distinct items")


def padded(sequences: Sequence[Int[Tensor, " t"]], length: int) -> Int[Tensor, "n l"]:
    """The last ``length`` items of each sequence, 0 on the left where there are fewer."""
    out = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, s in zip(out, sequences, strict=True):
        last = s[-length:]
        row[length - len(last) :] = last
    return out


def windows(sequences: Sequence[Int[Tensor, " t"]], length: int) -> Int[Tensor, "n l"]:
    """Each sequence cut from its end into rows of ``length`` items, the first one padded on the left."""
    return padded([s[:end] for s in sequences for end in range(len(s), 0, -length)], length)


def prefixes(rows: Int[Tensor, "n l"]) -> Int[Tensor, "m l"]:
    """The prefix of every item of padded rows, itself the last: rows as a victim is asked them, in reading order."""
    n, length = rows.shape
    lag = torch.arange(length, device=rows.device)
    source = lag[None] - (length - 1 - lag)[:, None]  # the item at place j of the prefix that ends at place t
    out = rows[:, source.clamp_min(0)] * (source >= 0)
    return out.reshape(n * length, length)[rows.flatten() > 0]


def allowed(scores: Float[Tensor, "n v"], rows: Int[Tensor, "n l"]) -> Float[Tensor, "n v"]:
    """Scores with the padding item 0 and the items of each row at minus infinity: neither is recommended."""
    return scores.scatter(1, rows, float("-inf")).index_fill(
        1, torch.zeros(1, dtype=torch.int64, device=rows.device), float("-inf")
    )


def top_items(scores: Float[Tensor, "n v"], k: int) -> Int[Tensor, "n k"]:
    """The k best items, best first; item 0 (padding) is none."""
    if not 1 <= k < scores.shape[1]:
        raise InputError(f"top items: k is {k}; expected 1 to {scores.shape[1] - 1}, the number of items")
    return scores[:, 1:].topk(k, 1).indices + 1


def contained(items: Int[Tensor, "n a"], lists: Int[Tensor, "n b"]) -> Bool[Tensor, "n a"]:
    """Which items of each row are in the list of that row."""
    return (items[:, :, None] == lists[:, None]).any(2)


def agreement_at_k(a: Int[Tensor, "n k"], b: Int[Tensor, "n k"], k: int) -> Float[Tensor, " n"]:
    """The share of the first k items of each list of ``a`` that are among the first k of ``b``, in [0, 1].

    Symmetric, whatever the orders. Raises InputError for lists that are shorter or not as many.
    """
    if a.dim() != 2 or b.dim() != 2 or len(a) != len(b) or not 1 <= k <= min(a.shape[1], b.shape[1]):
        raise InputError(f"agreement: lists {tuple(a.shape)} and {tuple(b.shape)}, k = {k}; expected (n, >= k) both")
    return contained(a[:, :k], b[:, :k]).float().mean(1)


def recall_at_k(lists: Int[Tensor, "n k"], truth: Int[Tensor, " n"], k: int) -> Float[Tensor, " n"]:
    """1 where the true next item is among the first k of the list, else 0."""
    _check_truth("recall_at_k", lists, truth, k)
    return (lists[:, :k] == truth[:, None]).any(1).float()


def ndcg_at_k(lists: Int[Tensor, "n k"], truth: Int[Tensor, " n"], k: int) -> Float[Tensor, " n"]:
    """1 / log2(1 + rank) of the true next item where it is among the first k, else 0 (one relevant item)."""
    _check_truth("ndcg_at_k", lists, truth, k)
    discount = 1 / torch.log2(torch.arange(2, k + 2, device=lists.device, dtype=torch.float32))
    return ((lists[:, :k] == truth[:, None]).float() * discount[: lists.shape[1]]).sum(1)


def _check_truth(where: str, lists: Tensor, truth: Tensor, k: int) -> None:
    if lists.dim() != 2 or truth.shape != lists.shape[:1] or k < 1:
        shapes = f"lists {tuple(lists.shape)}, truth {tuple(truth.shape)}, k = {k}"
        raise InputError(f"{where}: {shapes}; expected (n, m), (n,) and k >= 1")
