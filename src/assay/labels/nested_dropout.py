"""Nested dropout: features behind a random prefix, ordered by importance, and the width that a classifier needs."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.spec import rebuildable

CHUNK = 2**24  # products held at once, in numbers


@rebuildable
class NestedDropout(nn.Module):
    """Keeps the first k of ``dim`` channels, k drawn for each batch (Chen et al., 2022, arXiv:2206.13140).

    p(k) is proportional to exp(-(k / ``sigma``)^2), k = 1..dim: no factor 1/2, as in the official code. h (b, dim) is
    multiplied by k ones and dim - k zeros; nothing is rescaled. ``per="sample"`` draws a k for each row. In evaluation
    mode the first ``width`` channels are kept, all of them while ``width`` is None. The paper's sigma is 10 for
    CIFAR-10, 100 for CIFAR-100, Clothing1M and ANIMAL-10N. Draws come from torch's generator, as those of its dropout.
    Raises InputError for sigma <= 0, dim < 1, a width outside 1 to dim, and h of another shape.
    """

    probability: Tensor
    kept: Tensor

    def __init__(self, dim: int, sigma: float = 10.0, per: Literal["batch", "sample"] = "batch") -> None:
        super().__init__()
        if dim < 1 or not sigma > 0:
            raise InputError(f"NestedDropout: dim={dim}, sigma={sigma}; expected dim >= 1, sigma > 0")
        if per not in ("batch", "sample"):
            raise unknown("per of NestedDropout", per, ("batch", "sample"))
        self.dim, self.sigma, self.per = dim, float(sigma), per
        self.active = True  # off: training passes all channels, while another layer is masked
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64))
        weight = torch.exp(-((torch.arange(1, dim + 1).double() / sigma) ** 2 - (1 / sigma) ** 2))
        self.register_buffer("probability", (weight / weight.sum()).float(), persistent=False)

    @property
    def width(self) -> int | None:
        """How many channels evaluation keeps; None: all. It is saved with the weights."""
        return int(self.kept) or None

    @width.setter
    def width(self, value: int | None) -> None:
        if value is not None and not (value == int(value) and 1 <= value <= self.dim):
            raise InputError(f"NestedDropout: width={value}; expected an integer, 1 to {self.dim}")
        self.kept.fill_(value or 0)

    def sample_width(self, n: int = 1, generator: torch.Generator | None = None) -> Int[Tensor, " n"]:
        """``n`` draws of k from p."""
        return 1 + torch.multinomial(self.probability, n, replacement=True, generator=generator)

    def mask(self, n: int) -> Bool[Tensor, "m d"]:
        """The channels kept in training: one row for a batch of ``n``, or n rows."""
        widths = self.sample_width(n if self.per == "sample" else 1)
        return torch.arange(self.dim, device=widths.device) < widths[:, None]

    def forward(self, h: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if h.dim() != 2 or h.shape[1] != self.dim:
            raise InputError(f"NestedDropout: features {tuple(h.shape)}; expected (b, {self.dim})")
        if self.training:
            return h * self.mask(len(h)) if self.active else h
        return h if self.width is None else h * (torch.arange(self.dim, device=h.device) < self.width)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, sigma={self.sigma}, per={self.per!r}, width={self.width}"


@rebuildable
class NestedClassifier(nn.Module):
    """``body`` (n, ...) -> (n, dim), ``compress`` on its features, and a linear classifier, without bias.

    ``compress`` is NestedDropout for the method of arXiv:2206.13140, nn.Dropout for its variant and nn.Identity for
    the plain network. Where NestedDropout layers stand in ``body`` too, each training pass masks one of all of them,
    drawn anew, and passes the others fully (``alter-train`` of the official code). A ``bias`` warns: the order of the
    channels assumes that only they carry the logits.
    """

    def __init__(self, body: nn.Module, compress: nn.Module, dim: int, classes: int, bias: bool = False) -> None:
        super().__init__()
        if bias:
            warnings.warn("NestedClassifier: the order of channels assumes a classifier without bias", stacklevel=2)
        self.body, self.compress, self.head = body, compress, nn.Linear(dim, classes, bias=bias)

    def features(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """What is compressed."""
        return self.body(x).flatten(1)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        layers = [m for m in self.modules() if isinstance(m, NestedDropout)]
        if self.training and len(layers) > 1:
            chosen = int(torch.randint(len(layers), ()))
            for k, layer in enumerate(layers):
                layer.active = k == chosen
        return self.head(self.compress(self.features(x)))

    def narrowed(self, data: Data) -> NestedClassifier:
        """A copy that evaluates at the width that ``select_width`` finds on ``data``, its labels noisy or not.

        Of several NestedDropout layers the last is narrowed. Never choose on the data that accuracy is reported on.
        """
        layer = copy.deepcopy(self)
        if not isinstance(layer.compress, NestedDropout):
            raise InputError(f"narrowed: compress is {type(self.compress).__name__}; expected NestedDropout")
        weight, bias = _linear(self)
        layer.compress.width, _ = select_width(compressed(self, data.x), weight, data.y, bias=bias)
        return layer


def compressed(model: NestedClassifier, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """The features of ``x`` before compression, in evaluation mode, on the CPU."""
    with evaluating(model):
        return batched(model.features, x, device=device_of(model)).float()


def _linear(model: NestedClassifier) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"] | None]:
    """Weight and bias of the classifier, where and as ``compressed`` gives the features."""
    bias = model.head.bias
    return model.head.weight.detach().float().cpu(), None if bias is None else bias.detach().float().cpu()


def prefix_logits(
    h: Float[Tensor, "b d"], weight: Float[Tensor, "c d"], ks: Sequence[int] | None = None
) -> Float[Tensor, "k b c"]:
    """Logits from the first k channels alone, for each of ``ks`` (absent: 1 to d): one cumulative sum over h_j W_cj.

    Raises InputError for k outside 1 to d and for shapes that do not fit.
    """
    if h.dim() != 2 or weight.dim() != 2 or h.shape[1] != weight.shape[1]:
        raise InputError(f"prefix_logits: {tuple(h.shape)} and {tuple(weight.shape)}; expected (b, d) and (c, d)")
    wanted = torch.arange(1, h.shape[1] + 1) if ks is None else torch.as_tensor(ks)
    if not len(wanted) or wanted.is_floating_point() or wanted.min() < 1 or wanted.max() > h.shape[1]:
        raise InputError(f"prefix_logits: widths {wanted.tolist()[:5]}; expected integers, 1 to {h.shape[1]}")
    size = max(CHUNK // weight.numel(), 1)
    parts = [torch.einsum("bd,cd->dbc", part, weight).cumsum(0)[wanted - 1] for part in h.split(size)]
    return torch.cat(parts, 1)


@torch.no_grad()
def prefix_accuracy(
    h: Float[Tensor, "n d"], weight: Float[Tensor, "c d"], y: Int[Tensor, " n"], bias: Float[Tensor, " c"] | None = None
) -> Float[Tensor, " d"]:
    """Accuracy of the first k channels for k = 1 to d."""
    check_labels("prefix_accuracy", y, len(h), len(weight))
    if len(h) == 0:
        raise InputError("prefix_accuracy: no samples; expected at least one")
    shift = 0 if bias is None else bias
    size = max(CHUNK // weight.numel(), 1)
    hits = [
        (prefix_logits(part, weight) + shift).argmax(2) == labels
        for part, labels in zip(h.split(size), y.split(size), strict=True)
    ]
    return torch.cat(hits, 1).float().mean(1)


def select_width(
    features: Float[Tensor, "n d"],
    weight: Float[Tensor, "c d"],
    y: Int[Tensor, " n"],
    tie: float = 1e-5,
    bias: Float[Tensor, " c"] | None = None,
) -> tuple[int, Float[Tensor, " d"]]:
    """k* = argmax over k of accuracy_k - ``tie`` (k - 1), and the accuracies (arXiv:2206.13140, official evaluation).

    A small ``tie`` prefers few channels among equals. Raises InputError as ``prefix_logits`` does.
    """
    if not math.isfinite(tie) or tie < 0:
        raise InputError(f"select_width: tie={tie}; expected a finite number >= 0")
    accuracy = prefix_accuracy(features, weight, y, bias)
    return int((accuracy.double() - tie * torch.arange(len(accuracy))).argmax()) + 1, accuracy


@dataclass(frozen=True)
class NoiseFit:
    """By the number of channels, 1 to d: the share of samples whose right label is predicted, and of wrongly labelled
    samples whose wrong label is (NaN without any).
    """

    right: Float[np.ndarray, " d"]
    wrong: Float[np.ndarray, " d"]


def noise_fit_curve(
    model: NestedClassifier, x: Float[Tensor, "n ..."], y_true: Int[Tensor, " n"], y_noisy: Int[Tensor, " n"]
) -> NoiseFit:
    """How much of the true labels and of the noise the first k channels hold (arXiv:2206.13140: compression as a
    bound on what noise can be stored). Training samples show memorisation; test samples are their own ``y_noisy``.
    """
    check_labels("noise_fit_curve", y_noisy, len(y_true))
    h, (weight, bias) = compressed(model, x), _linear(model)
    wrong = y_true != y_noisy
    right = prefix_accuracy(h, weight, y_true, bias).numpy()
    kept = prefix_accuracy(h[wrong], weight, y_noisy[wrong], bias) if wrong.any() else torch.full((len(right),), np.nan)
    return NoiseFit(right, kept.numpy())
