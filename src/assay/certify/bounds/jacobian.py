"""Bounds on derivatives over a region: the graph of the gradient is bounded like any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from assay.certify.bounds.decompositions import DECOMPOSITIONS
from assay.certify.bounds.module import BoundedModule, Method, bounds_of
from assay.certify.bounds.perturbation import Perturbation
from assay.certify.bounds.products import kept
from assay.certify.bounds.registry import register
from assay.certify.bounds.unary import interval_step, relax_step
from assay.runtime.errors import InputError
from assay.runtime.inference import evaluating

aten = torch.ops.aten
SAMPLES = 8191  # of the traced batch: tracing takes equal sizes for the same, and no layer has this one


def jacobian_bounds(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    perturbation: Perturbation,
    C: Float[Tensor, "s c"] | None = None,
    method: Method = "CROWN",
    *,
    slack: float = 0.0,
) -> tuple[Float[Tensor, "n s ..."], Float[Tensor, "n s ..."]]:
    """Bounds on every partial derivative of C f (None: of the outputs) at all points of the perturbation around x.

    The model's gradient is traced and bounded (Shi et al., 2022, arXiv:2210.07394, section 3), by ``method`` and by
    intervals, whichever is closer. At the kinks of ReLU
    the bounds hold for the derivatives on either side. Layers: linear, convolution, sums, ReLU, leaky ReLU, tanh,
    sigmoid, softplus, GELU; another operator raises InputError with its name.
    """
    with evaluating(model):
        graph = gradient(model, x, C)
        module, methods = BoundedModule(graph, x), dict.fromkeys(("IBP", method))
        pairs = [bounds_of(module.run(x, perturbation, m, slack=slack), None, m) for m in methods]
    lower, upper = torch.stack([p[0] for p in pairs]).amax(0), torch.stack([p[1] for p in pairs]).amin(0)
    return lower.unflatten(1, (-1, *x.shape[1:])), upper.unflatten(1, (-1, *x.shape[1:]))


def local_lipschitz(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    perturbation: Perturbation,
    C: Float[Tensor, "s c"] | None = None,
    method: Method = "CROWN",
    *,
    norm: float = math.inf,
    slack: float = 0.0,
) -> Float[Tensor, "n s"]:
    """Upper bounds of |C f(a) - C f(b)| / ||a - b||_norm for a and b in the (convex) perturbation around x.

    The dual norm of the largest absolute derivatives; ``norm`` 1, 2 or infinity.
    """
    if norm not in (1, 2, math.inf):
        raise InputError(f"local_lipschitz: norm is {norm}; expected 1, 2 or infinity")
    lower, upper = jacobian_bounds(model, x, perturbation, C, method, slack=slack)
    dual = {1: math.inf, 2: 2.0, math.inf: 1.0}[norm]
    return lower.abs().maximum(upper.abs()).flatten(2).norm(p=dual, dim=2)


def gradient(model: nn.Module, x: Float[Tensor, "n ..."], C: Float[Tensor, "s c"] | None = None) -> fx.GraphModule:
    """A module that gives the derivatives of C f at each sample of x, flat: (n, s * elements of a sample)."""
    with torch.no_grad():
        out = model(x[:1])
    if out.dim() != 2 or (C is not None and (C.dim() != 2 or C.shape[1] != out.shape[1])):
        given = None if C is None else tuple(C.shape)
        raise InputError(f"jacobian: outputs {tuple(out.shape)} and C {given}; expected (n, c) and (s, c)")
    rows = torch.eye(out.shape[1]).to(out) if C is None else C.to(out)

    def derivatives(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        z = model(x)
        parts = [torch.autograd.grad((z * row).sum(), x, retain_graph=True)[0] for row in rows]
        return torch.stack(parts, 1).flatten(1) + 0 * x.flatten(1).sum(1, keepdim=True)  # linear models: no x is left

    with torch.enable_grad():
        traced = make_fx(derivatives, tracing_mode="symbolic", _allow_non_fake_inputs=True)
        return traced(x[:1].expand(SAMPLES, *x.shape[1:]))


def _through(slope: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The backward operator of an elementwise one: the gradient times the slope at the input (or output)."""
    return lambda grad, x, *args, **kwargs: grad * slope(x, *args, **kwargs)


def _gelu_slope(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate != "none":
        raise InputError("bounds: the derivative of GELU through tanh; expected GELU through erf")
    return (1 + torch.erf(x / math.sqrt(2))) / 2 + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _leaky_slope(x: Tensor, negative_slope: float, self_is_result: bool) -> Tensor:
    return negative_slope + (1 - negative_slope) * _step(x)


def _softplus_slope(x: Tensor, beta: float, threshold: float) -> Tensor:
    """The logistic function, and 1 where torch puts x for softplus."""
    return torch.sigmoid(beta * x) + torch.sigmoid(-beta * x) * _step(beta * x - threshold)


def _step(x: Tensor) -> Tensor:
    return torch.heaviside(x, torch.zeros((), dtype=x.dtype))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    if transposed:
        raise InputError("bounds: the derivative of a transposed convolution; expected an ordinary one")
    run: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
    return run(x, weight, bias, stride, padding, dilation, groups)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, None, None]:
    """The gradient of a convolution's input: the transposed convolution of the output's."""
    sides = zip(x.shape[2:], grad.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    extra = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in sides]
    back: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
    return back(grad, weight, None, stride, padding, extra, groups, dilation), None, None


DECOMPOSITIONS.update(
    {
        aten.addmm.default: lambda bias, a, b: a @ b + bias,
        aten.convolution.default: _convolution,
        aten.convolution_backward.default: _convolution_backward,
        aten.threshold_backward.default: _through(lambda x, threshold: _step(x - threshold)),
        aten.leaky_relu_backward.default: _through(_leaky_slope),
        aten.tanh_backward.default: _through(lambda out: 1 - out.square()),
        aten.sigmoid_backward.default: _through(lambda out: 0.25 - (out - 0.5).square()),
        aten.softplus_backward.default: _through(_softplus_slope),
        aten.gelu_backward.default: _through(_gelu_slope),
    }
)
register(kept(relax_step, interval_step), aten.heaviside.default)
