"""Dependency of two views by a critic: contrastive predictive coding, and its form for Lipschitz critics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.errors import InputError

Critic = Callable[[Tensor, Tensor], Tensor]


class CPCLoss(nn.Module):
    """-J of contrastive predictive coding (van den Oord et al., 2018, arXiv:1807.03748), in nats.

    J = 1/N sum_i log(exp(f_ii) / (1/N sum_j exp(f_ij))) for ``scores`` f (N, N), f_ij = f(x_i, y_j) of N pairs. A lower
    bound of the mutual information that never exceeds log N. Raises InputError unless the scores are finite (N, N),
    N >= 2.
    """

    kind: ClassVar[str] = "function"

    def forward(self, scores: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
        """-J, at least -log N."""
        if scores.dim() != 2 or len(scores) != scores.shape[1] or len(scores) < 2 or not torch.isfinite(scores).all():
            raise InputError(f"CPCLoss: scores {tuple(scores.shape)}; expected finite (N, N) with N >= 2")
        return (scores.logsumexp(1) - scores.diagonal()).mean() - math.log(len(scores))


def gradient_penalty(
    critic: Critic,
    x: Float[Tensor, "n ..."],
    y: Float[Tensor, "n ..."],
    y_neg: Float[Tensor, "n ..."],
    *,
    x_neg: Float[Tensor, "n ..."] | None = None,
    two_sided: bool = True,
    eps: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of (|grad f|_2 - 1)^2, the gradient by x and y together (WGAN-GP: Gulrajani et al., 2017, arXiv:1704.00028).

    Taken at (x, eps y + (1 - eps) y_neg), between a joint and a product sample, eps (n,) uniform in [0, 1] from torch's
    generator of the CPU unless given; with ``x_neg`` also at (eps x + (1 - eps) x_neg, y). Off ``two_sided`` only norms
    above 1 count. ``critic(x, y) -> (n,)``, row by row: no batch norm; an input that it does not use has slope 0.
    Differentiable by the critic's parameters. Raises InputError for integers, for lengths that differ, for a critic of
    another shape and for one without a gradient.
    """
    norms = critic_gradients(critic, x, _between(y, y_neg, eps))
    if x_neg is not None:
        norms = torch.cat((norms, critic_gradients(critic, _between(x, x_neg, eps), y)))
    excess = norms - 1
    return (excess if two_sided else excess.clamp_min(0)).square().mean()


def _between(a: Tensor, b: Tensor, eps: Float[Tensor, " n"] | None) -> Tensor:
    """eps a + (1 - eps) b, row by row; eps is drawn where it is None."""
    if a.shape != b.shape:
        raise InputError(f"gradient_penalty: {tuple(a.shape)} and {tuple(b.shape)}; expected the same shape")
    share = torch.rand(len(a)) if eps is None else eps  # on the CPU: the same numbers for every device
    if share.shape != (len(a),):
        raise InputError(f"gradient_penalty: eps {tuple(share.shape)}; expected ({len(a)},)")
    return b + share.to(a).view(-1, *[1] * (a.dim() - 1)) * (a - b)


def critic_gradients(critic: Critic, x: Float[Tensor, "n ..."], y: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """|grad f(x_i, y_i)|_2 by both inputs together, as part of the graph."""
    if len(x) != len(y) or len(x) == 0 or not x.is_floating_point() or not y.is_floating_point():
        given = f"{x.dtype} {tuple(x.shape)}, {y.dtype} {tuple(y.shape)}"
        raise InputError(f"gradient_penalty: {given}; expected floats of one length, at least 1")
    with torch.enable_grad():
        left, right = x.detach().requires_grad_(), y.detach().requires_grad_()
        value = critic(left, right)
        if value.shape != (len(x),):
            raise InputError(f"gradient_penalty: the critic gave {tuple(value.shape)}; expected ({len(x)},)")
        if not value.requires_grad:
            raise InputError("gradient_penalty: the critic's values carry no gradient; expected a function of x and y")
        gradients = torch.autograd.grad(value.sum(), (left, right), create_graph=True, materialize_grads=True)
    squares = sum((g.flatten(1).square().sum(1) for g in gradients), torch.zeros_like(value))
    # The root's slope at 0 is infinite; a critic that is constant there gets a slope of 0.
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), 0.0)


class WPCLoss(nn.Module):
    """Wasserstein predictive coding: -J over Lipschitz critics (Ozair et al., 2019, arXiv:1903.11780).

    f(x, y) = phi(x) . psi(y); the loss is CPCLoss of the N x N scores plus ``lam`` times the gradient penalty at N
    pairs between joint and product samples, y_neg being the next sample's y. The form of the constraint is ours: the
    two-sided penalty between y and y_neg is that of WGAN-GP; ``two_sided`` and ``symmetric`` (x is mixed too) are
    the alternatives. The metric is the Euclidean one of the data: keep their scale, and do not normalise embeddings.

    ``loss(phi, psi, x, y) -> (loss, logs)``, logs: "nce" (J) and "gp" (the penalty; 0 where lam is, which takes none).
    Raises InputError for lam < 0, fewer than two pairs and encoders that do not both give (n, d).
    """

    kind: ClassVar[str] = "function"

    def __init__(self, lam: float = 10.0, two_sided: bool = True, symmetric: bool = False) -> None:
        super().__init__()
        if not 0 <= lam < math.inf:
            raise InputError(f"WPCLoss: lam={lam}; expected a finite number >= 0")
        self.lam, self.two_sided, self.symmetric = float(lam), two_sided, symmetric
        self.cpc = CPCLoss()

    def penalty(self, phi: nn.Module, psi: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """What keeps the critic near a slope of 1."""
        x_neg = x.roll(1, 0) if self.symmetric else None
        critic = inner_critic(phi, psi)
        return gradient_penalty(critic, x, y, y.roll(1, 0), x_neg=x_neg, two_sided=self.two_sided)

    def forward(
        self, phi: nn.Module, psi: nn.Module, x: Float[Tensor, "n ..."], y: Float[Tensor, "n ..."]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of the pairs, and its parts."""
        if len(x) != len(y) or len(x) < 2:
            raise InputError(f"WPCLoss: {len(x)} and {len(y)} samples; expected as many of both, two or more")
        left, right = phi(x), psi(y)
        if left.dim() != 2 or left.shape != right.shape or len(left) != len(x):
            shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
            raise InputError(f"WPCLoss: the encoders gave {shapes}; expected ({len(x)}, d) both")
        nce = self.cpc(left @ right.T)
        if not self.lam:
            return nce, {"nce": -nce.item(), "gp": 0.0}
        gp = self.penalty(phi, psi, x, y)
        return nce + self.lam * gp, {"nce": -nce.item(), "gp": gp.item()}


def inner_critic(phi: nn.Module, psi: nn.Module) -> Critic:
    """f(x, y) = phi(x) . psi(y), row by row."""
    return lambda x, y: (phi(x) * psi(y)).sum(1)
