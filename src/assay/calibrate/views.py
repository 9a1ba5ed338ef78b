"""What a model says about transformed copies of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws

Transform = Callable[[Tensor, Draws], Tensor]


def collect_views(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    transforms: Sequence[Transform],
    *,
    seed: int,
    index: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "v n c"]:
    """Logits of the model on one copy of ``x`` for each transform, float32: the ``views`` of ``Outputs``.

    A transform maps (x, draws) to inputs of the shape of x, as ``represent.Augmentation`` and the rules of
    ``data.corruptions`` do; its draws depend on (seed, its position, the sample's ``index``) alone, by default 0 to
    n - 1. Calibration and use need the same transforms. Costs v forward passes. InputError for an empty list, an index
    of another length, and a transform that changes the shape.
    """
    check_inputs("collect_views", x)
    if not transforms:
        raise InputError("collect_views: no transforms; expected at least one")
    names = torch.arange(len(x)) if index is None else index
    if names.shape != (len(x),):
        raise InputError(f"collect_views: index {tuple(names.shape)}; expected ({len(x)},), one for each sample")
    views = []
    for k, transform in enumerate(transforms):
        copy = transform(x, Draws(seed, f"view/{k}", names))
        if copy.shape != x.shape:
            shapes = f"{tuple(x.shape)} to {tuple(copy.shape)}"
            raise InputError(f"collect_views: transform {k} turns {shapes}; expected the same shape")
        views.append(predict(model, copy))
    return torch.stack(views)
