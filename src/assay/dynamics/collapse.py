"""Neural collapse: how close the last layer's geometry is to a simplex equiangular tight frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, batched, device_of, evaluating


@dataclass(frozen=True)
class Collapse:
    """The four measures, each 0 at perfect collapse.

    nc2 of the class means (``norms``, ``angles``) and of the head's rows (``head_norms``, ``head_angles``).
    ``disagree`` (n,) says for which samples the head and the nearest class mean differ; its mean is ``nc4``.
    """

    nc1: float
    norms: float
    angles: float
    head_norms: float
    head_angles: float
    nc3: float
    disagree: Bool[Tensor, " n"]

    @property
    def nc4(self) -> float:
        """The fraction of samples on which head and nearest class mean disagree."""
        return float(self.disagree.double().mean())


def neural_collapse(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None = None,
) -> Collapse:
    """NC1 to NC4 (Papyan, Han & Donoho, 2020, arXiv:2008.08186, section "The NC phenomenon"), in float64.

    With class means mu_k, their mean mu_G (every class counts the same, whatever its size), M = [mu_k - mu_G],
    S_B = M M^T / c and S_W the average over classes of the within-class covariance:

    - NC1 = tr(S_W S_B^+) / c, the pseudo-inverse on the at most c - 1 leading directions;
    - NC2 = std / mean of the norms |mu_k - mu_G|, and the mean over pairs of |cos + 1 / (c - 1)|;
    - NC3 = || W / |W|_F - M^T / |M|_F ||_F;
    - NC4 = the fraction of samples where arg max(W h + b) is not arg min_k |h - mu_k|.

    Raises InputError when shapes disagree, a class has no sample, or all class means coincide.
    """
    check_inputs("neural_collapse", features)
    check_inputs("neural_collapse, weight", weight)
    c = len(weight)
    if features.dim() != 2 or weight.shape != (c, features.shape[1]) or c < 2:
        raise InputError(
            f"neural_collapse: features {tuple(features.shape)}, weight {tuple(weight.shape)}; expected (n, d), (c, d)"
        )
    if bias is not None and (bias.shape != (c,) or not torch.isfinite(bias).all()):
        raise InputError(f"neural_collapse: bias has shape {tuple(bias.shape)}; expected finite values ({c},)")
    check_labels("neural_collapse", labels, len(features), c)
    counts = torch.bincount(labels, minlength=c)
    if (counts == 0).any():
        raise InputError(f"neural_collapse: class {int(counts.argmin())} has no sample; expected at least one a class")
    h, w = features.detach().cpu().double(), weight.detach().cpu().double()
    means = torch.zeros(c, h.shape[1], dtype=h.dtype).index_add_(0, labels, h) / counts[:, None]
    m = means - means.mean(0)
    if float(m.norm()) <= 1e-12 * max(float(means.norm()), 1e-300):
        raise InputError("neural_collapse: all class means coincide; expected features that differ between classes")
    logits = h @ w.T + (0.0 if bias is None else bias.detach().cpu().double())
    norms, angles = _frame(m)
    head_norms, head_angles = _frame(w)
    nc3 = float((w / w.norm().clamp_min(1e-300) - m / m.norm()).norm())
    disagree = logits.argmax(1) != torch.cdist(h, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return Collapse(_variability(h - means[labels], labels, m), norms, angles, head_norms, head_angles, nc3, disagree)


def _variability(within: Tensor, labels: Tensor, m: Tensor) -> float:
    """NC1. With M = U S V^T, tr(S_W S_B^+) is c times the class-average of |S^-1 U^T (h - mu)|^2: no d x d matrix."""
    c = len(m)
    _, s, u = torch.linalg.svd(m, full_matrices=False)
    keep = (s > s[0] * 1e-10) & (torch.arange(len(s)) < c - 1)
    squared = ((within @ u[keep].T) / s[keep]).square().sum(1)
    by_class = torch.zeros(c, dtype=squared.dtype).index_add_(0, labels, squared) / torch.bincount(labels, minlength=c)
    return float(by_class.mean())  # the factor c of S_B^+ cancels the 1 / c of NC1


def _frame(rows: Float[Tensor, "c d"]) -> tuple[float, float]:
    """How unequal the rows' norms are, and how far their pairwise cosines are from -1 / (c - 1)."""
    c = len(rows)
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(1e-300)[:, None]
    off = (unit @ unit.T + 1 / (c - 1))[~torch.eye(c, dtype=torch.bool)]
    return float(norms.std(correction=0) / norms.mean().clamp_min(1e-300)), float(off.abs().mean())


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
