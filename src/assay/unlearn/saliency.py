"""Which weights matter most for what is to be forgotten, and training that changes no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from assay.compress.pruning import Masks, lowest
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating
from assay.training import State
from assay.training.engine import Hook

BatchLoss = Callable[[dict[str, Tensor], Batch], Tensor]


def saliency(
    model: nn.Module, batches: Iterable[Batch], loss: BatchLoss, clip: float | None = None
) -> dict[str, Tensor]:
    """|sum over ``batches`` of the gradient of ``loss(weights, batch)``|, by parameter name, in evaluation mode.

    The magnitude is taken of the sum, in float64. With ``clip`` the gradient of each batch is scaled down to that norm
    before. Raises InputError where it is not finite or 0 everywhere.
    """
    free, device = {k: p.detach() for k, p in model.named_parameters()}, device_of(model)
    total = {k: torch.zeros_like(p, dtype=torch.float64) for k, p in free.items()}
    with evaluating(model):
        for batch in batches:
            found: dict[str, Tensor] = grad(loss)(free, batch.to(device))
            norm = torch.stack([g.norm() for g in found.values()]).norm()
            scale = 1.0 if clip is None else (clip / (norm + 1e-6)).clamp_max(1.0)  # as torch's clip_grad_norm_
            total = {k: v + scale * found[k] for k, v in total.items()}
    if not all(torch.isfinite(v).all() for v in total.values()) or not any(v.any() for v in total.values()):
        raise InputError("saliency: the gradient is 0 everywhere or not finite; expected finite gradients, some not 0")
    return {k: v.abs() for k, v in total.items()}


def salient(
    magnitudes: Mapping[str, Tensor],
    sparsity: float = 0.5,
    *,
    params: Collection[str] | None = None,
    per_layer: bool = False,
) -> Masks:
    """True at the floor(``sparsity`` N) largest magnitudes of all N together, or in each tensor with ``per_layer``.

    Exactly so many, also with ties, of which the later ones are taken. ``params`` names those that are ranked; all
    others are False. Raises InputError for a share outside (0, 1], one that leaves nothing, and unknown names.
    """
    if not 0 < sparsity <= 1:
        raise InputError(f"salient weights: sparsity={sparsity}; expected a share in (0, 1]")
    names = list(magnitudes) if params is None else [k for k in magnitudes if k in params]
    if params is not None and (strange := sorted(set(params) - set(magnitudes))):
        raise unknown("parameter", strange[0], magnitudes)
    sizes = [magnitudes[k].numel() for k in names]
    groups = [magnitudes[k].flatten() for k in names]
    if not per_layer and names:
        groups = [torch.cat(groups)]
    # Rounded, as 0.29 * 100 is 28.999999999999996.
    kept = [~lowest(g, len(g) - math.floor(round(sparsity * len(g), 6))) for g in groups]
    if not any(k.any() for k in kept):
        raise InputError(f"salient weights: sparsity={sparsity} of {sum(sizes)} leaves none; expected at least one")
    parts = dict(zip(names, torch.cat(kept).split(sizes), strict=True))
    none = {k: torch.zeros_like(v, dtype=torch.bool) for k, v in magnitudes.items()}
    return {k: parts[k].view_as(v) if k in parts else v for k, v in none.items()}


def weight_saliency_mask(
    model: nn.Module,
    forget: Data,
    *,
    loss: Callable[..., Tensor] = F.cross_entropy,
    sparsity: float = 0.5,
    params: Collection[str] | None = None,
    per_layer: bool = False,
) -> Masks:
    """True for the ``sparsity`` of all parameters whose gradient of the loss on ``forget`` is largest in magnitude
    (Fan et al., 2024, arXiv:2310.12508, the weight saliency map).

    Keys and shapes are those of ``model.named_parameters()``, biases and norms included. ``loss(logits, y,
    reduction="sum")`` is one of torch's; the gradient is of its sum over samples, in evaluation mode (the official code
    sums the means of batches: the same, but for a last batch that is smaller). ``params`` and ``per_layer``: see
    ``salient``. Raises InputError where the model has no logit for a label.
    """
    check_inputs("weight_saliency_mask", forget.x, forget.y, forget.bounds)

    def total(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        logits = functional_call(model, weights, (batch.x,))
        if logits.dim() != 2 or logits.shape[1] < len(forget.classes):
            shape = tuple(logits.shape)
            raise InputError(f"weight_saliency_mask: outputs {shape}; expected (n, {len(forget.classes)}) logits")
        return loss(logits, batch.y, reduction="sum")

    found = saliency(model, forget.batches(BATCH), total)
    return salient(found, sparsity, params=params, per_layer=per_layer)


def held(mask: Masks, model: nn.Module) -> Hook:
    """A hook of training that puts every weight outside ``mask`` back to that of ``model`` after each step.

    The optimisers work entry by entry: what decay, momentum or a gradient does to a weight that is put back reaches no
    other, so that this is the same as masking gradients and momentum too. Raises InputError unless the mask has a
    boolean tensor of each parameter's shape.
    """
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    good = mask.keys() == start.keys() and all(
        mask[k].shape == p.shape and mask[k].dtype == torch.bool for k, p in start.items()
    )
    if not good:
        raise InputError("mask: does not fit the model; expected a boolean tensor for each of its named parameters")

    def hold(models: Mapping[str, nn.Module], state: State) -> None:
        with torch.no_grad():
            for name, p in models["model"].named_parameters():
                p.copy_(torch.where(mask[name].to(p.device), p, start[name]))

    return hold
