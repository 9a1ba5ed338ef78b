"""How data lie with clients that do not share them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.random import numpy_rng

DRAWS = 1000  # how often shares are drawn anew until every client has enough


def dirichlet_split(
    y: Int[Tensor, " n"], n_clients: int, alpha: float, *, seed: int, min_size: int = 1
) -> list[Int[Tensor, " k"]]:
    """Positions of each client's samples: every class is shared out by Dirichlet(alpha) weights of its own.

    Hsu, Qi and Brown (2019, arXiv:1909.06335) measure heterogeneity so: large ``alpha`` gives all clients the same mix
    of labels, small ``alpha`` each its own few. Shares are drawn until every client has ``min_size`` samples. The
    positions are sorted, disjoint, and cover y. InputError where ``min_size`` cannot be met or alpha is not above 0.
    """
    check_labels("dirichlet_split", y, len(y))
    if n_clients < 1 or not (np.isfinite(alpha) and alpha > 0) or min_size < 1 or n_clients * min_size > len(y):
        found = f"n_clients={n_clients}, alpha={alpha}, min_size={min_size} of {len(y)} samples"
        raise InputError(f"dirichlet_split: {found}; expected alpha > 0 and at least min_size >= 1 samples a client")
    rng = numpy_rng(seed, "dirichlet", n_clients)
    for _ in range(DRAWS):
        parts: list[list[np.ndarray]] = [[] for _ in range(n_clients)]
        for label in np.unique(y.numpy()):
            rows = rng.permutation(np.flatnonzero(y.numpy() == label))
            ends = np.rint(np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(rows)).astype(int)
            for client, piece in zip(parts, np.split(rows, ends), strict=True):
                client.append(piece)
        clients = [np.sort(np.concatenate(p)) for p in parts]
        if min(map(len, clients)) >= min_size:
            return [torch.from_numpy(c) for c in clients]
    raise InputError(
        f"dirichlet_split: no draw of {DRAWS} at alpha={alpha} left every client {min_size} samples; "
        "expected fewer clients, a larger alpha or a smaller min_size"
    )
