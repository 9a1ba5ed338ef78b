"""What a group of samples sees of training: barriers between two networks, and how fast the kernel turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError
from assay.runtime.inference import BATCH, batched, device_of, evaluating


@dataclass(frozen=True)
class Barrier:
    """Error rates ``errors`` (points,) at ``alphas`` (points,), from the first network (0) to the second (1)."""

    alphas: Float[Tensor, " points"]
    errors: Float[Tensor, " points"]

    @property
    def value(self) -> float:
        """The highest error on the line minus the mean of its ends; >= 0 up to the mean of unequal ends."""
        return float(self.errors.max() - (self.errors[0] + self.errors[-1]) / 2)


def linear_mode_barrier(
    first: nn.Module,
    second: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    points: int = 30,
    group: Int[Tensor, " k"] | Bool[Tensor, " n"] | None = None,
    batch_size: int = BATCH,
) -> Barrier:
    """The error on the straight line between two networks of one architecture (Frankle et al., 2020, arXiv:1912.05671,
    section 2), on the samples ``group`` alone (Paul et al., 2021, arXiv:2107.07075, section 5).

    All floating-point parameters and buffers are interpolated at ``points`` >= 2 equal steps, ends included. Raises
    InputError for networks whose states differ in names or shapes, and an empty group.
    """
    x, y = (x, y) if group is None else (x[group], y[group])
    check_inputs("linear_mode_barrier", x)
    check_labels("linear_mode_barrier", y, len(x))
    a, b = first.state_dict(), second.state_dict()
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        raise InputError("linear_mode_barrier: the networks' states differ; expected one architecture")
    if points < 2:
        raise InputError(f"linear_mode_barrier: points={points}; expected at least 2, the ends")
    alphas = torch.linspace(0, 1, points)
    errors = []
    with evaluating(first):
        for alpha in alphas.tolist():
            state = {k: torch.lerp(a[k], b[k], alpha) if a[k].is_floating_point() else a[k] for k in a}

            def wrong(inputs: Tensor, labels: Tensor, state: dict[str, Tensor] = state) -> Tensor:
                return functional_call(first, state, (inputs,), tie_weights=False).argmax(1) != labels

            errors.append(batched(wrong, x, y, batch_size=batch_size, device=device_of(first)).float().mean())
    return Barrier(alphas, torch.stack(errors))


def ntk_submatrix_velocity(
    before: nn.Module, after: nn.Module, x: Float[Tensor, "n ..."], *, dt: float = 1.0, chunk: int = 32
) -> float:
    """How fast the tangent kernel of the samples ``x`` turns: (1 - <K, K'> / (||K|| ||K'||)) / dt, in [0, 1/dt]
    (kernel velocity of Fort et al., 2020, arXiv:2010.15110; on groups of samples Paul et al., 2021, section 5).

    K (nc, nc) holds inner products of the gradients of all logits in all parameters, in evaluation mode. Memory: n
    times the classes times the parameters; ``chunk`` samples are differentiated at once.
    """
    check_inputs("ntk_submatrix_velocity", x)
    if not dt > 0 or chunk < 1:
        raise InputError(f"ntk_submatrix_velocity: dt={dt}, chunk={chunk}; expected dt > 0, chunk >= 1")
    k, other = (_kernel(model, x, chunk) for model in (before, after))
    norms = k.norm() * other.norm()
    if not norms > 0 or not torch.isfinite(norms):
        raise InputError("ntk_submatrix_velocity: a kernel is zero or not finite; expected networks that depend on x")
    return max(1.0 - float((k * other).sum() / norms), 0.0) / dt


def _kernel(model: nn.Module, x: Tensor, chunk: int) -> Float[Tensor, "nc nc"]:
    device = device_of(model)
    free = {name: p.detach() for name, p in model.named_parameters()}

    def logits(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, weights, (one[None],))[0]

    with evaluating(model), torch.no_grad():
        slopes = vmap(jacrev(logits), in_dims=(None, 0))
        parts = [slopes(free, part.to(device)) for part in x.split(chunk)]
    rows = [torch.cat([j.flatten(2) for j in part.values()], 2).flatten(0, 1).double() for part in parts]
    slope = torch.cat(rows)
    return slope @ slope.T
