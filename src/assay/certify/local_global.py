"""From the error of single layers to the error of a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import evaluating, named_layers

CONTRACTIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Dropout, nn.Flatten)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@torch.no_grad()
def global_error_bound(
    model: nn.Module,
    modified: nn.Module,
    x: Float[Tensor, "n ..."],
    method: Literal["spectral", "empirical"] = "spectral",
) -> tuple[float, float]:
    """(bound, measured) of E|f(x) - f~(x)|, the mean distance of the outputs of two networks of the same layers.

    f - f~ telescopes over layers: E|f - f~| <= sum_l (prod_{j>l} L_j) E|f_l(h_{l-1}) - f~_l(h_{l-1})| with h the
    activations of ``model`` and L_j the Lipschitz constant of layer j of ``modified``: the unsquared form, over several
    layers, of the local-to-global theorem of Kashyap et al. (2025, arXiv:2511.19566). Computed in float64.

    "spectral" L_j hold for every input: the spectral norm of a linear layer; of a zero-padded convolution the largest
    singular value over all frequencies of a torus that its padded input fits in, for it is a part of that circular one;
    the largest scale of a batch norm; 1 for activations, flattening, and means or maxima over windows that do not
    overlap (no dilation, no other divisor). "empirical" takes
    the largest ratio over neighbouring pairs of the samples' activations, which is no guarantee. Networks are chains of
    layers in the order of their names. Raises InputError for others, for layers without a known constant, and for
    networks whose layers differ in shape.
    """
    if method not in ("spectral", "empirical"):
        raise unknown("method of global_error_bound", str(method), ("spectral", "empirical"))
    check_inputs("global_error_bound", x)
    chains = [_chain(m, x) for m in (model, modified)]
    if len(chains[0]) != len(chains[1]):
        raise InputError(f"global_error_bound: {len(chains[0])} and {len(chains[1])} layers; expected the same layers")
    bound, h = 0.0, x.double()
    for first, second in zip(*chains, strict=True):
        ours, theirs = first(h), second(h)
        if ours.shape != theirs.shape:
            shapes = f"{tuple(ours.shape[1:])} and {tuple(theirs.shape[1:])}"
            raise InputError(
                f"global_error_bound: layers give {shapes}; expected the same shapes (mask, do not shrink)"
            )
        constant = _lipschitz(second, h) if method == "spectral" else _ratio(second, h)
        bound = bound * constant + float((ours - theirs).flatten(1).norm(dim=1).mean())
        h = ours
    last = x.double()
    for layer in chains[1]:
        last = layer(last)
    return bound, float((h - last).flatten(1).norm(dim=1).mean())


def _chain(model: nn.Module, x: Tensor) -> Sequence[nn.Module]:
    """The layers in order, in float64 and evaluation mode, once they are known to make up the network."""
    layers = [copy.deepcopy(m).double().eval() for m in named_layers(model).values()]
    with evaluating(model):
        expected = model(x[:2])
    found = x[:2].double()
    try:
        for layer in layers:
            found = layer(found)
    except (RuntimeError, TypeError) as error:
        raise InputError("global_error_bound: the layers do not fit one after the other; expected a chain") from error
    if found.shape != expected.shape or not torch.allclose(found, expected.double(), rtol=1e-3, atol=1e-4):
        raise InputError("global_error_bound: the layers in order do not give the model's output; expected a chain")
    return layers


def _lipschitz(layer: nn.Module, h: Tensor) -> float:
    """A constant that holds for every input of the shape of ``h``."""
    if isinstance(layer, nn.Linear):
        return float(torch.linalg.matrix_norm(layer.weight, 2))
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and layer.groups == 1:
        return _conv_norm(layer, h)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt()
        return float((scale if layer.weight is None else scale * layer.weight).abs().max())
    if isinstance(layer, CONTRACTIONS) or (isinstance(layer, POOLS) and _apart(layer)):
        return 1.0
    raise InputError(f"global_error_bound: no Lipschitz constant of {type(layer).__name__} is known; try 'empirical'")


def _apart(pool: nn.Module) -> bool:
    """Whether every input of a pool is in one window at most, and its outputs are means or maxima."""
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return pool.output_size in (1, (1, 1))
    if getattr(pool, "divisor_override", None) is not None or getattr(pool, "dilation", 1) not in (1, (1, 1)):
        return False
    size, stride = (v if isinstance(v, tuple) else (v, v) for v in (pool.kernel_size, pool.stride))
    return all(s >= k for s, k in zip(stride, size, strict=True))


def _conv_norm(layer: nn.Conv2d, h: Tensor) -> float:
    """The spectral norm of the circular convolution on the padded map; a stride drops outputs only."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    size = (h.shape[2] + top + bottom, h.shape[3] + left + right)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    kernel = layer.weight.new_zeros(*layer.weight.shape[:2], *(max(s, r) for s, r in zip(size, reach, strict=True)))
    kernel[:, :, : reach[0] : layer.dilation[0], : reach[1] : layer.dilation[1]] = layer.weight
    transfer = torch.fft.fft2(kernel).permute(2, 3, 0, 1)
    return float(torch.linalg.svdvals(transfer).max())


def _ratio(layer: nn.Module, h: Tensor) -> float:
    """The largest ratio of distances after and before the layer, over samples that follow one another."""
    if len(h) < 2:
        raise InputError("global_error_bound: one sample; expected two or more for empirical constants")
    before, after = (t.diff(dim=0).flatten(1).norm(dim=1) for t in (h, layer(h)))
    apart = before > 0
    return float((after[apart] / before[apart]).max()) if bool(apart.any()) else 1.0
