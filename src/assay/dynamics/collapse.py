"""Neural collapse: how close the last layer's geometry is to a simplex equiangular tight frame."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, batched, device_of, evaluating


@dataclass(frozen=True, eq=False)
class Collapse:
    """The measures, each 0 at perfect collapse.

    NC2 of the class means (``norms``, ``angles``) and of the head's rows (``head_norms``, ``head_angles``,
    ``head_gram``). ``product`` is NC3 in its other form, of the head times the means. ``disagree`` (n,) says for which
    samples the head and the nearest class mean differ; its mean is ``nc4``. What needs a head is NaN without one, and
    ``disagree`` is empty. ``per_class`` holds (c,) tensors: ``count``; ``spread``, whose mean is NC1 (weighted by count
    under "sample"); ``norm``, |mu_k - mu_G| over the classes' mean; ``nearest``, the largest cosine to another class's
    mean; and with a head ``head_cos``, the cosine of its row to the class's mean, and ``disagree``, the class's NC4.
    """

    nc1: float
    norms: float
    angles: float
    head_norms: float
    head_angles: float
    nc3: float
    disagree: Bool[Tensor, " n"]
    head_gram: float
    product: float
    per_class: Mapping[str, Tensor]

    @property
    def nc4(self) -> float:
        """The fraction of samples on which head and nearest class mean disagree."""
        return float(self.disagree.double().mean())


def neural_collapse(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    weight: Float[Tensor, "c d"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    *,
    weighting: Literal["class", "sample"] = "class",
) -> Collapse:
    """NC1 to NC4 (Papyan, Han & Donoho, 2020, arXiv:2008.08186, section "The NC phenomenon"), in float64.

    With class means mu_k, a global mean mu_G, M = [mu_k - mu_G], S_B = M M^T / c and S_W the covariance within classes:

    - NC1 = tr(S_W S_B^+) / c, the pseudo-inverse on the at most c - 1 leading directions;
    - NC2 = std / mean of the norms |mu_k - mu_G|, the mean over pairs of |cos + 1 / (c - 1)|, and for the head
      || W W^T / |W W^T|_F - (I - 11^T / c) / sqrt(c - 1) ||_F;
    - NC3 = || W / |W|_F - M^T / |M|_F ||_F, or || W M / |W M|_F - (I - 11^T / c) / sqrt(c - 1) ||_F;
    - NC4 = the fraction of samples where arg max(W h + b) is not arg min_k |h - mu_k|.

    ``weighting="class"``: mu_G is the mean of class means, S_W the average over classes, whatever their size.
    "sample": both are averages over samples, as in the code of Zhu et al. (2021, arXiv:2105.02375); the same where
    classes are balanced. Rows of W are not centred. Without ``weight`` the classes are 0 to the largest label. A class
    of one sample has no spread: a UserWarning says so, as NC1 is then too small. Raises InputError when shapes
    disagree, values are not finite, a class has no sample, or all class means coincide.
    """
    c = _check(features, labels, weight, bias, weighting)
    counts = torch.bincount(labels, minlength=c)
    if (counts == 0).any():
        raise InputError(f"neural_collapse: class {int(counts.argmin())} has no sample; expected at least one a class")
    if (counts == 1).any():
        warnings.warn(f"neural_collapse: class {int(counts.argmin())} has one sample, so no spread", stacklevel=2)
    h = features.detach().cpu().double()
    means = torch.zeros(c, h.shape[1], dtype=h.dtype).index_add_(0, labels, h) / counts[:, None]
    share = counts.double() / len(h) if weighting == "sample" else torch.full((c,), 1 / c, dtype=h.dtype)
    m = means - share @ means
    if float(m.norm()) <= 1e-12 * max(float(means.norm()), 1e-300):
        raise InputError("neural_collapse: all class means coincide; expected features that differ between classes")
    norms, angles = _frame(m)
    spread, unit = _spread(h - means[labels], labels, m), _unit(m)
    nearest = (unit @ unit.T).fill_diagonal_(-1).amax(1)
    per_class = {"count": counts, "spread": spread, "norm": m.norm(dim=1) / m.norm(dim=1).mean(), "nearest": nearest}
    measures = {"nc1": float(share @ spread), "norms": norms, "angles": angles}
    if weight is None:
        lacking = dict.fromkeys(("head_norms", "head_angles", "nc3", "head_gram", "product"), math.nan)
        return Collapse(**measures, **lacking, disagree=torch.zeros(0, dtype=torch.bool), per_class=per_class)
    w = weight.detach().cpu().double()
    logits = h @ w.T + (0.0 if bias is None else bias.detach().cpu().double())
    disagree = logits.argmax(1) != torch.cdist(h, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    per_class["disagree"] = torch.zeros_like(spread).index_add_(0, labels, disagree.double()) / counts
    per_class["head_cos"] = (_unit(w) * unit).sum(1)
    return Collapse(**measures, **_of_head(w, m), disagree=disagree, per_class=per_class)


def _of_head(w: Float[Tensor, "c d"], m: Float[Tensor, "c d"]) -> dict[str, float]:
    """NC2 of the head and both forms of NC3."""
    norms, angles = _frame(w)
    return {
        "head_norms": norms,
        "head_angles": angles,
        "nc3": float((w / w.norm().clamp_min(1e-300) - m / m.norm()).norm()),
        "head_gram": _from_simplex(w @ w.T),
        "product": _from_simplex(w @ m.T),
    }


def _check(features: Tensor, labels: Tensor, weight: Tensor | None, bias: Tensor | None, weighting: str) -> int:
    """The number of classes, once the input is known to be usable."""
    check_inputs("neural_collapse", features)
    if weighting not in ("class", "sample"):
        raise unknown("weighting of neural_collapse", weighting, ("class", "sample"))
    if features.dim() != 2:
        raise InputError(f"neural_collapse: features {tuple(features.shape)}; expected (n, d)")
    check_labels("neural_collapse", labels, len(features), None if weight is None else len(weight))
    c = int(labels.max()) + 1 if weight is None else len(weight)
    if c < 2:
        raise InputError(f"neural_collapse: {c} class; expected at least 2")
    if weight is not None:
        check_inputs("neural_collapse, weight", weight)
        if weight.shape != (c, features.shape[1]):
            shapes = f"features {tuple(features.shape)}, weight {tuple(weight.shape)}"
            raise InputError(f"neural_collapse: {shapes}; expected (n, d), (c, d)")
    if bias is not None and (weight is None or bias.shape != (c,) or not torch.isfinite(bias).all()):
        raise InputError(
            f"neural_collapse: bias has shape {tuple(bias.shape)}; expected a weight, and finite values ({c},)"
        )
    return c


def _spread(within: Tensor, labels: Tensor, m: Tensor) -> Float[Tensor, " c"]:
    """Each class's part of NC1. With M = U S V^T, tr(S_W S_B^+) is c times a mean of |S^-1 U^T (h - mu)|^2: no d x d
    matrix, and the factor c of S_B^+ cancels the 1 / c of NC1."""
    c = len(m)
    _, s, u = torch.linalg.svd(m, full_matrices=False)
    keep = (s > s[0] * 1e-10) & (torch.arange(len(s)) < c - 1)
    squared = ((within @ u[keep].T) / s[keep]).square().sum(1)
    return torch.zeros(c, dtype=squared.dtype).index_add_(0, labels, squared) / torch.bincount(labels, minlength=c)


def _unit(rows: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
    return rows / rows.norm(dim=1).clamp_min(1e-300)[:, None]


def _frame(rows: Float[Tensor, "c d"]) -> tuple[float, float]:
    """How unequal the rows' norms are, and how far their pairwise cosines are from -1 / (c - 1)."""
    c = len(rows)
    norms, unit = rows.norm(dim=1), _unit(rows)
    off = (unit @ unit.T + 1 / (c - 1))[~torch.eye(c, dtype=torch.bool)]
    return float(norms.std(correction=0) / norms.mean().clamp_min(1e-300)), float(off.abs().mean())


def _from_simplex(products: Float[Tensor, "c c"]) -> float:
    """How far products of rows are, up to scale, from those of a simplex ETF."""
    c = len(products)
    simplex = (torch.eye(c, dtype=products.dtype) - 1 / c) / math.sqrt(c - 1)
    return float((products / products.norm().clamp_min(1e-300) - simplex).norm())


def head_inputs(
    model: nn.Module, x: Float[Tensor, "n ..."], *, batch_size: int = BATCH
) -> tuple[Float[Tensor, "n d"], nn.Linear]:
    """What the model's head is fed, (n, d) on the CPU, and the head: the nn.Linear whose output is the model's output.

    The head is the linear layer called last; InputError when there is none or the model's output is not its output.
    """
    check_inputs("head_inputs", x)
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, args[0], out))

    def feed(chunk: Tensor) -> Tensor:
        calls.clear()
        out = model(chunk)
        if not calls:
            raise InputError("the model calls no nn.Linear; expected a linear head")
        _, fed, linear = calls[-1]
        if fed.dim() != 2 or linear.shape != out.shape or not torch.equal(linear, out):
            raise InputError("the model's output is not that of its last nn.Linear; expected a linear head")
        return fed.float()

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with evaluating(model):
            fed = batched(feed, x, batch_size=batch_size, device=device_of(model))
    finally:
        for handle in handles:
            handle.remove()
    return fed, calls[-1][0]
