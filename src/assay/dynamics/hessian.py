"""The Hessian of the mean loss in the weights, by products with vectors: top eigenvalue and trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from torch.func import functional_call

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.runtime.random import Draws

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Eigenvalue:
    """A Ritz value; some eigenvalue lies within ``residual`` of it (Lanczos, 1950). ``steps`` products were used.

    ``vector`` (p,) float64 of norm 1 is its Ritz vector v: the value is v^T H v.
    """

    value: float
    residual: float
    steps: int
    vector: Float[Tensor, " p"] = field(compare=False)


@dataclass(frozen=True)
class Trace:
    """A mean over ``probes`` random probes with its standard error.

    ``forms`` (probes, n) holds v^T H_i v of each probe and sample; the value is their mean.
    """

    value: float
    error: float
    probes: int
    forms: Float[np.ndarray, "k n"] = field(compare=False)


@dataclass(frozen=True, kw_only=True)
class Hessian:
    """The Hessian H of the mean of ``loss(logits, y)`` over (x, y) in the model's parameters, never formed.

    Products are by double backward (Pearlmutter, 1994), summed over batches of ``batch_size``, so memory does not grow
    with the data; the model is in evaluation mode and is not changed. ``loss`` is a mean over samples. Vectors are flat
    (p,) float64 in the order of ``model.named_parameters()``.
    """

    model: nn.Module
    x: Float[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    loss: Loss = F.cross_entropy
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        check_inputs("Hessian", self.x)
        check_labels("Hessian", self.y, len(self.x))
        if self.batch_size < 1:
            raise InputError(f"Hessian: batch_size={self.batch_size}; expected at least 1")
        if self.size == 0:
            raise InputError("Hessian: the model has no parameters; expected at least one")

    @property
    def size(self) -> int:
        """The number of parameters p."""
        return sum(p.numel() for p in self.model.parameters())

    def product(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H times ``vector``."""
        named, device = dict(self.model.named_parameters()), device_of(self.model)
        directions = self._directions(vector)
        total = torch.zeros(self.size, dtype=torch.float64, device=device)
        with evaluating(self.model), torch.enable_grad():
            for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
                free = {k: p.detach().clone().requires_grad_() for k, p in named.items()}
                loss = self.loss(functional_call(self.model, free, (x.to(device),)), y.to(device))
                first = torch.autograd.grad(loss, list(free.values()), create_graph=True, materialize_grads=True)
                curved = [(g, v) for g, v in zip(first, directions, strict=True) if g.requires_grad]
                if curved:
                    grads, along = zip(*curved, strict=True)
                    second = torch.autograd.grad(grads, list(free.values()), along, materialize_grads=True)
                    total += torch.cat([s.detach().reshape(-1) for s in second]).double() * (len(x) / len(self.x))
        if not torch.isfinite(total).all():
            raise InputError("Hessian: a product is not finite; expected a twice differentiable, finite loss")
        return total.cpu()

    def _directions(self, vector: Float[Tensor, " p"]) -> list[Tensor]:
        """The vector as one tensor a parameter."""
        if vector.shape != (self.size,):
            raise InputError(f"Hessian: the vector has shape {tuple(vector.shape)}; expected ({self.size},)")
        parameters = list(self.model.parameters())
        pieces = vector.split([p.numel() for p in parameters])
        return [v.reshape(p.shape).to(p) for v, p in zip(pieces, parameters, strict=True)]

    def forms(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " n"]:
        """v^T H_i v for the Hessian H_i of each sample's loss; their mean is v^T H v.

        With weights u on the samples, the second derivative of sum_i u_i l_i along v is linear in u: its gradient in u
        is what is sought, in one pass more than a product takes.
        """
        directions, device, found = self._directions(vector), device_of(self.model), []
        with evaluating(self.model), torch.enable_grad():
            for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
                free = {k: p.detach().clone().requires_grad_() for k, p in self.model.named_parameters()}
                logits = functional_call(self.model, free, (x.to(device),))
                each = torch.vmap(self.loss)(logits[:, None], y.to(device)[:, None])
                weights = torch.ones_like(each, requires_grad=True)
                curve = (each * weights).sum()
                for _ in range(2):
                    slopes = torch.autograd.grad(curve, list(free.values()), create_graph=True, materialize_grads=True)
                    curve = sum((g * v).sum() for g, v in zip(slopes, directions, strict=True)) + 0 * weights.sum()
                found.append(torch.autograd.grad(curve, weights)[0].double().cpu())
        return torch.cat(found)

    def top_eigenvalue(self, *, seed: int, steps: int = 30, tolerance: float = 1e-3) -> Eigenvalue:
        """The largest eigenvalue by Lanczos, fully reorthogonalised (Ghorbani et al., 2019, arXiv:1901.10159).

        Stops when the residual is below ``tolerance`` times the value, at the latest after ``steps`` products. Memory:
        ``steps`` vectors of size p.
        """
        if steps < 1 or tolerance < 0:
            raise InputError(f"Hessian: steps={steps}, tolerance={tolerance}; expected steps >= 1, tolerance >= 0")
        q = Draws(seed, "lanczos", torch.zeros(1, dtype=torch.int64)).normal(self.size)[0].double()
        basis = torch.zeros(min(steps, self.size), self.size, dtype=torch.float64)
        diagonal: list[float] = []
        off: list[float] = []
        value, residual = 0.0, 0.0
        for k in range(len(basis)):
            basis[k] = q / q.norm()
            q = self.product(basis[k])
            diagonal.append(float(basis[k] @ q))
            for _ in range(2):  # twice is enough (Parlett, 1980, section 6.9)
                q = q - basis[: k + 1].T @ (basis[: k + 1] @ q)
            values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(off))
            value, beta = float(values[-1]), float(q.norm())
            residual = beta * abs(float(vectors[-1, -1]))
            scale = max(abs(float(values[0])), abs(value))
            if beta <= 1e-12 * scale or (k > 1 and residual <= tolerance * abs(value)):
                break
            off.append(beta)
        ritz = basis[: len(diagonal)].T @ torch.from_numpy(vectors[:, -1])
        return Eigenvalue(value, residual, len(diagonal), ritz)

    def trace(self, *, seed: int, probes: int = 30) -> Trace:
        """The trace by Hutchinson's estimator: the mean of v^T H v over vectors of random signs (Hutchinson, 1989)."""
        if probes < 2:
            raise InputError(f"Hessian: probes={probes}; expected at least 2")
        draws = (Draws(seed, "hutchinson", torch.tensor([k])).signs(self.size)[0].double() for k in range(probes))
        forms = torch.stack([self.forms(v) for v in draws]).numpy()
        values = forms.mean(1)
        return Trace(float(values.mean()), float(values.std(ddof=1)) / probes**0.5, probes, forms)
