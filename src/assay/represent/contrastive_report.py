"""What a temperature does to a representation: penalties on negatives, uniformity, tolerance, and a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from assay.data import Data
from assay.losses.contrastive import check_temperature, off_diagonal
from assay.represent.linear_probe import linear_probe
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import torch_rng

NEIGHBOURS = 5


def penalty_distribution(similarity: Float[Tensor, "n m"], tau: float) -> Float[Tensor, "n m"]:
    """r_ik = exp(s_ik / tau) / sum_k exp(s_ik / tau) over the m negatives of each sample: what share of the softmax
    contrastive loss's gradient each of them gets, |dL/ds_ik| / |dL/ds_ii| (Wang & Liu, 2021, arXiv:2012.09740).

    ``similarity`` without the positive. Rows sum to 1.
    """
    _check_similarity("penalty_distribution", similarity, tau)
    return (similarity / tau).softmax(1)


def penalty_entropy(similarity: Float[Tensor, "n m"], tau: float) -> Float[Tensor, " n"]:
    """Entropy in nats of each sample's penalties, 0 to log m; it grows with tau, by Var_r(s) / tau^3."""
    _check_similarity("penalty_entropy", similarity, tau)
    log_r = (similarity / tau).log_softmax(1)
    return -(log_r.exp() * log_r).sum(1)


def uniformity(z: Float[Tensor, "n d"], t: float = 2.0, pairs: int | None = None, seed: int = 0) -> float:
    """log of the mean of exp(-t |z_i - z_j|^2) over pairs i != j of the embeddings at norm 1: at most 0, lower is more
    uniform (Wang & Isola, 2020, arXiv:2005.10242).

    ``pairs``: so many random pairs, drawn by ``seed``; absent, all.
    """
    unit = _unit("uniformity", z)
    if not 0 < t < math.inf or (pairs is not None and pairs < 1):
        raise InputError(f"uniformity: t={t}, pairs={pairs}; expected t > 0, pairs >= 1")
    if pairs is None:
        near = off_diagonal(unit @ unit.T).flatten()
    else:
        g = torch_rng(seed, "pairs")
        first = torch.randint(len(unit), (pairs,), generator=g)
        second = (first + torch.randint(1, len(unit), (pairs,), generator=g)) % len(unit)
        near = (unit[first] * unit[second]).sum(1)
    return float((2 * t * (near - 1)).logsumexp(0) - math.log(len(near)))


def tolerance(z: Float[Tensor, "n d"], labels: Int[Tensor, " n"], normalized: bool = True) -> float:
    """Mean similarity of pairs i != j of the same class, -1 to 1: how close a representation leaves what belongs
    together (Wang & Liu, 2021, arXiv:2012.09740).

    ``normalized`` divides by the share of such pairs; without it the mean over all pairs of s_ij 1{same class}, the
    paper's form, depends on the balance of the classes.
    """
    unit = _unit("tolerance", z)
    check_labels("tolerance", labels, len(unit))
    same = off_diagonal((labels[:, None] == labels).float())
    if not same.any():
        raise InputError(f"tolerance: {len(unit)} samples, no two of one class; expected a pair")
    total = (same * off_diagonal(unit @ unit.T)).sum()
    return float(total / (same.sum() if normalized else same.numel()))


def temperature_sweep(
    train: Callable[[float], nn.Module], taus: Sequence[float], data: Data, test: Data
) -> list[dict[str, float]]:
    """One row a temperature, ready for a data frame: what the encoder ``train(tau)`` gives on ``test``.

    "tau", "uniformity", "tolerance" (normalised), "entropy" of the penalties at that temperature (a mean over samples,
    the others as negatives), and the accuracies on ``test`` of a linear probe ("linear") and of the 5 nearest
    neighbours by cosine ("neighbours") fitted on ``data``. Raises InputError for temperatures <= 0, before any
    training, and fewer than 5 samples in ``data``.
    """
    for tau in taus:
        check_temperature("temperature_sweep", tau)
    rows = []
    for tau in taus:
        encoder = train(tau)
        rows.append({"tau": float(tau), **representation_report(encoder, tau, data, test)})
    return rows


def representation_report(encoder: nn.Module, tau: float, data: Data, test: Data) -> dict[str, float]:
    """The row of one encoder without its temperature: see ``temperature_sweep``."""
    known, z = predict(encoder, data.x), predict(encoder, test.x)
    unit = _unit("temperature_sweep", z)
    if len(known) < NEIGHBOURS:
        raise InputError(f"temperature_sweep: {len(known)} samples; expected at least {NEIGHBOURS}, the neighbours")
    nearest = KNeighborsClassifier(NEIGHBOURS).fit(F.normalize(known, dim=1).numpy(), data.y.numpy())
    return {
        "uniformity": uniformity(z),
        "tolerance": tolerance(z, test.y),
        "entropy": float(penalty_entropy(off_diagonal(unit @ unit.T), tau).mean()),
        "linear": linear_probe(encoder, data, test),
        "neighbours": float(nearest.score(unit.numpy(), test.y.numpy())),
    }


def _unit(where: str, z: Tensor) -> Tensor:
    if z.dim() != 2 or len(z) < 2 or not torch.isfinite(z).all() or not z.any(1).all():
        raise InputError(f"{where}: embeddings {tuple(z.shape)}; expected finite (n, d), n >= 2, no row of zeros")
    return F.normalize(z, dim=1)


def _check_similarity(where: str, similarity: Tensor, tau: float) -> None:
    check_temperature(where, tau)
    if similarity.dim() != 2 or not similarity.numel() or not torch.isfinite(similarity).all():
        raise InputError(f"{where}: similarities {tuple(similarity.shape)}; expected finite (n, m), m >= 1")
