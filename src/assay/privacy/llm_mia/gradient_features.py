"""What a classifier can be told of a text's gradient: norms by layer, or random projections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.privacy.llm_mia.base import as_texts
from assay.privacy.llm_mia.sample_gradients import embedding_gradients, weight_gradients
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.random import torch_rng

ORDERS = (1.0, 2.0, math.inf)
KINDS = ("norms", "projections", "balanced")
DISTRIBUTIONS = ("rademacher", "normal")
SEED = 229  # of the official code's projections
BLOCK = 2**16  # rows of a projection that are drawn at once


def gradient_norms(
    embedded: Float[Tensor, "n t d"], gradients: Mapping[str, Float[Tensor, "n ..."]]
) -> Float[Tensor, "n f"]:
    """The 1-, 2- and inf-norms of the gradient in the embeddings, in all parameters, and in each: (n, 3 (2 + k))."""
    each = torch.stack([torch.stack([g.flatten(1).norm(p, dim=1) for p in ORDERS], 1) for g in gradients.values()], 1)
    total = torch.stack([each[..., i].norm(p, dim=1) for i, p in enumerate(ORDERS)], 1)
    first = torch.stack([embedded.flatten(1).norm(p, dim=1) for p in ORDERS], 1)
    return torch.cat((first, total, each.flatten(1)), 1)


def projected(x: Float[Tensor, "n f"], dim: int, distribution: str, seed: int, stream: str) -> Float[Tensor, "n k"]:
    """x R / sqrt(dim) with a random R (f, dim) of unit variance, so that |x| is kept on average (Johnson and
    Lindenstrauss). R is drawn in blocks of rows and its rows depend on their number alone."""
    total = x.new_zeros(len(x), dim)
    for block, part in enumerate(x.split(BLOCK, 1)):
        rng = torch_rng(seed, stream, block)
        if distribution == "normal":
            rows = torch.randn(part.shape[1], dim, generator=rng)
        else:
            rows = torch.randint(2, (part.shape[1], dim), generator=rng).float() * 2 - 1
        total += part @ rows.to(x)
    return total / math.sqrt(dim)


def balanced_groups(sizes: Mapping[str, int], groups: int) -> list[list[str]]:
    """Parameters in ``groups`` of about one size: each, the largest first, joins the group that is least so far."""
    found: list[list[str]] = [[] for _ in range(groups)]
    sums = [0] * groups
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        least = sums.index(min(sums))
        found[least].append(name)
        sums[least] += sizes[name]
    return found


def gradient_features(
    model: nn.Module,
    x: Int[Tensor, "n t"] | Sequence[str],
    attention_mask: Tensor | None = None,
    *,
    kind: Literal["norms", "projections", "balanced"] = "norms",
    dim: int = 32,
    groups: int = 8,
    distribution: Literal["rademacher", "normal"] = "rademacher",
    seed: int = SEED,
    tokenizer: Any = None,
    batch_size: int = 32,
) -> Float[Tensor, "n f"]:
    """Features of each text's gradient (Wang et al., 2024, arXiv:2402.17012), float64 on the CPU.

    "norms": see ``gradient_norms``. "projections": ``dim`` numbers of the gradient in the embeddings and of each
    parameter's, by random matrices of the ``distribution`` and ``seed``. "balanced": of the embeddings' and of each of
    ``groups`` of parameters of about equal size. x and mask: see TextInference.score. ``model``: a causal model of
    transformers; it stays as it is. InputError for unknown options.
    """
    if kind not in KINDS:
        raise unknown("kind of gradient features", kind, KINDS)
    if distribution not in DISTRIBUTIONS:
        raise unknown("distribution of gradient features", distribution, DISTRIBUTIONS)
    if dim < 1 or groups < 1:
        raise InputError(f"gradient_features: dim={dim}, groups={groups}; expected at least 1 of each")
    texts = as_texts(x, attention_mask, tokenizer, model, "gradient_features")

    def project(part: Tensor, stream: str) -> Tensor:
        return projected(part, dim, distribution, seed, stream)

    def features(ids: Tensor, mask: Tensor) -> Tensor:
        embedded, found = embedding_gradients(model, ids, mask), weight_gradients(model, ids, mask)
        if kind == "norms":
            return gradient_norms(embedded, found).double()
        flat = {name: g.flatten(1) for name, g in found.items()}
        parts = [[name] for name in flat]
        if kind == "balanced":
            parts = [g for g in balanced_groups({k: g.shape[1] for k, g in flat.items()}, groups) if g]
        rest = [project(torch.cat([flat[n] for n in names], 1), "+".join(names)) for names in parts]
        return torch.cat((project(embedded.flatten(1), "embeddings"), *rest), 1).double()

    with evaluating(model):
        return batched(features, texts.ids, texts.mask, batch_size=batch_size, device=device_of(model))
