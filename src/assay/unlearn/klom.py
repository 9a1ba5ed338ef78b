"""How far the outputs on single samples are from those of retrained models."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


def margins(logits: Float[Tensor, "*k n c"], y: Int[Tensor, " n"]) -> Float[Tensor, "*k n"]:
    """f_y - log sum of exp f_c over the other classes: the log-odds of the label, float64."""
    check_labels("margins", y, logits.shape[-2], logits.shape[-1])
    z, label = logits.double(), y[:, None].expand(*logits.shape[:-1], 1)
    return z.gather(-1, label)[..., 0] - z.scatter(-1, label, -torch.inf).logsumexp(-1)


def klom(
    unlearned: Float[Tensor, "n q"],
    oracle: Float[Tensor, "m q"],
    *,
    bins: int = 20,
    clip: float = 100.0,
    eps: float = 1e-5,
    compat: bool = False,
) -> Float[Tensor, " q"]:
    """KL divergence of margins, one number a sample (Georgiev et al., 2024, arXiv:2410.23232, section 3, "KLoM").

    ``unlearned`` and ``oracle`` hold the margins (see ``margins``) of n unlearned and m retrained models on q samples.
    Clipped to [-clip, clip], each sample's margins of both sides fall into ``bins`` equal bins over their common range;
    then sum over bins of p log(p / max(q, eps)), in nats: p of the unlearned, q of the retrained models. 0 where both
    fill the bins alike; with few models it is large even then, so that it is read beside the value of a second
    retrained ensemble of the same size. ``compat`` drops a sample's largest margin from its last bin as the official
    function does. Raises InputError for fewer than two models on a side, NaN, or unlike samples.
    """
    if unlearned.dim() != 2 or oracle.dim() != 2 or unlearned.shape[1] != oracle.shape[1]:
        raise InputError(
            f"klom: margins {tuple(unlearned.shape)} and {tuple(oracle.shape)}; expected (n, q) and (m, q)"
        )
    if min(len(unlearned), len(oracle)) < 2 or bins < 1 or not clip > 0 or not eps > 0:
        raise InputError(
            f"klom: {len(unlearned)} and {len(oracle)} models, bins={bins}, clip={clip}, eps={eps}; "
            "expected at least two models a side, bins >= 1, clip, eps > 0"
        )
    if torch.isnan(unlearned).any() or torch.isnan(oracle).any():
        raise InputError("klom: some margins are NaN; expected numbers")
    a, b = (m.double().clamp(-clip, clip) for m in (unlearned, oracle))
    both = torch.cat([a, b])
    low, width = both.amin(0), both.amax(0) - both.amin(0)
    p, q = (_shares(m, low, width, bins, compat) for m in (a, b))
    terms = torch.where(p > 0, p * (p.clamp_min(1e-300) / q.clamp_min(eps)).log(), 0.0)
    return terms.sum(0)


def _shares(m: Tensor, low: Tensor, width: Tensor, bins: int, compat: bool) -> Float[Tensor, "bins q"]:
    """The share of each sample's models in each bin."""
    place = ((m - low) / torch.where(width > 0, width, 1.0) * bins).long()
    counts = torch.zeros(bins + 1, m.shape[1], dtype=torch.float64, device=m.device)
    counts.scatter_add_(0, place, torch.ones_like(m))
    if not compat:
        counts[bins - 1] += counts[bins]
    return counts[:bins] / len(m)
