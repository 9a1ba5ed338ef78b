"""Structured pruning: whole channels are taken out, and what is left makes up for them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.compress.base import Compressor
from assay.compress.channel_graph import LAYERS, NORMS, Space, blocks, channel_spaces, keep_channels
from assay.compress.subset_fidelity import (
    RIDGE,
    Aggregate,
    FittedFidelity,
    Ranking,
    SubsetFidelity,
    component_scores,
    output_weights,
)
from assay.data import Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of
from assay.subject import Access, Subject


@dataclass(frozen=True)
class Calibration:
    """What a score of channels may use: samples, labels (the model's own where none are given), fidelities, a seed."""

    x: Tensor
    y: Tensor | None
    fidelity: FittedFidelity
    seed: int


@dataclass(frozen=True)
class PrunedChannels:
    """A smaller model; ``mask_`` (c,) by layer says which of its input channels are left."""

    model: nn.Module
    mask_: Mapping[str, Bool[Tensor, " c"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ChannelPruning(Compressor):
    """Remove channels with the filters that write them, so that the tensors are smaller. A subclass states ``scores``.

    Of every set of channels that stand or fall together (see ``channel_spaces``) ``round(keep c)`` >= 1 of c are kept,
    with ``scope`` "global" the highest over all sets once the scores of each set sum to 1, at least one in each.
    ``layers``: those whose inputs are pruned (absent: all but what the model reads). ``compensate`` scales each kept
    slice by delta*, the least squares of every output on what is left of it (Kashyap et al., 2025, arXiv:2511.19566),
    from the first ``n_max`` samples; with ``center`` the bias takes the means. ``recalibrate_bn`` measures the
    statistics of batch norms anew on these samples. No labels, no gradients, no fine-tuning. Raises InputError without
    samples, for a model without such channels, and for values out of range.
    """

    contract: ClassVar[bool] = True

    keep: float = 0.5
    scope: Literal["layer", "global"] = "layer"
    layers: tuple[str, ...] | None = None
    compensate: bool = False
    recalibrate_bn: bool = False
    n_max: int = 1024
    center: bool = False
    aggregate: Aggregate = "energy"
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not (math.isfinite(self.keep) and 0 < self.keep <= 1) or self.n_max < 1 or not self.ridge >= 0:
            given = f"keep={self.keep}, n_max={self.n_max}, ridge={self.ridge}"
            raise InputError(f"{who}: {given}; expected a share in (0, 1], n_max >= 1, ridge >= 0")
        if self.scope not in ("layer", "global"):
            raise unknown(f"scope of {who}", str(self.scope), ("layer", "global"))

    def scores(self, model: nn.Module, space: Space, given: Calibration) -> Float[Tensor, " c"]:
        """How much each channel of a set matters, >= 0 where the scope is global; the highest are kept."""
        raise TypeError(f"{type(self).__name__} states no scores")

    def compress(self, model: nn.Module, data: Data | None, *, seed: int) -> nn.Module:
        """A smaller copy of ``model``, calibrated on ``data``."""
        if data is None:
            _has_layers(model)
            raise InputError(f"{type(self).__name__}: no data; expected samples to calibrate on")
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        return self.prune(model, data.x, data.y, seed=seed).model

    def repair(self, subject: Subject, *, seed: int) -> nn.Module:
        """The subject's model, calibrated on its training data or, without, on the held-out samples."""
        subject.grants(Access.WEIGHTS, type(self).__name__)
        return self.compress(subject.model, subject.train or subject.holdout, seed=seed)

    def prune(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"] | None = None, *, seed: int = 0
    ) -> PrunedChannels:
        """``model`` without channels, and which are left; ``x`` are samples of its inputs, unlabelled."""
        _has_layers(model)
        check_inputs(type(self).__name__, x)
        x, y = x[: self.n_max], None if y is None else y[: self.n_max]
        spaces = self._chosen(channel_spaces(model, x[:1].to(device_of(model))))
        given = Calibration(x, y, self._fidelity(model, spaces, x), seed)
        scores = [self.scores(model, space, given).cpu() for space in spaces]
        small = copy.deepcopy(model).eval()
        if getattr(small, "spec", None) is not None:
            vars(small)["spec"] = None  # the factory's widths no longer hold
        masks: dict[str, Bool[Tensor, " c"]] = {}
        chosen = list(zip(spaces, self._kept(scores), strict=True))
        for space, kept in chosen if self.compensate else []:  # with all outputs still there, as delta* has them
            self._compensate(small, space, kept, given.fidelity)
        for space, kept in chosen:
            keep_channels(small, space, kept.to(device_of(small)))
            mask = torch.zeros(space.channels, dtype=torch.bool)
            mask[kept] = True
            masks |= {name: mask for name in space.consumers}
        if self.recalibrate_bn:
            recalibrate(small, x)
        return PrunedChannels(small, masks)

    def _chosen(self, spaces: list[Space]) -> list[Space]:
        read = {name for space in spaces for name in space.consumers}
        for name in self.layers or ():
            if name not in read:
                raise unknown("layer with channels to prune", name, read)
        chosen = [s for s in spaces if self.layers is None or set(self.layers) & set(s.consumers)]
        if not chosen:
            raise InputError(f"{type(self).__name__}: no channels between two layers; expected some to prune")
        return chosen

    def _fidelity(self, model: nn.Module, spaces: list[Space], x: Tensor) -> FittedFidelity:
        per = {name: size for space in spaces for name, size in space.consumers.items()}
        measure = SubsetFidelity(layer_names=tuple(per), blocks=per, center=self.center, aggregate=self.aggregate)
        return measure.fit(model, x)

    def _kept(self, scores: list[Tensor]) -> list[Int[Tensor, " k"]]:
        """The channels kept of each set, ascending."""
        if self.scope == "layer":
            counts = [max(round(self.keep * len(s)), 1) for s in scores]
            return [s.topk(k).indices.sort().values for s, k in zip(scores, counts, strict=True)]
        shares = [s.clamp_min(0) / s.clamp_min(0).sum().clamp_min(torch.finfo(s.dtype).tiny) * len(s) for s in scores]
        first = [torch.arange(len(s)) == s.argmax() for s in shares]
        every = torch.cat([s.masked_fill(f, math.inf) for s, f in zip(shares, first, strict=True)])
        count = max(round(self.keep * len(every)), len(scores))
        kept = torch.zeros(len(every), dtype=torch.bool)
        kept[every.topk(count).indices] = True
        return [part.nonzero()[:, 0] for part in kept.split([len(s) for s in scores])]

    @torch.no_grad()
    def _compensate(self, small: nn.Module, space: Space, kept: Int[Tensor, " k"], fidelity: FittedFidelity) -> None:
        """Scale the kept slices of every layer that reads the set, in place."""
        modules: dict[str, Any] = dict(small.named_modules())
        for name, per in space.consumers.items():
            layer = modules[name]
            delta = fidelity.compensation(name, kept, self.ridge)
            columns = blocks(kept, per)
            factor = delta.repeat_interleave(per, 1).to(layer.weight)
            layer.weight[:, columns] *= factor.reshape(*factor.shape, *[1] * (layer.weight.dim() - 2))
            if layer.bias is not None:
                layer.bias += fidelity.shift(name, kept, delta).to(layer.bias)


def _has_layers(model: nn.Module) -> None:
    if not any(isinstance(m, LAYERS) for m in model.modules()):
        raise InputError("channel pruning: the model has no convolutional or linear layer to prune")


def group_scores(space: Space, fidelity: FittedFidelity, method: Ranking) -> Float[Tensor, " c"]:
    """The scores of a set's channels: the sum over the layers that read it, see ``component_scores``."""
    grams = [fidelity.gram(name) for name in space.consumers]
    weights = torch.cat([output_weights(gram, fidelity.aggregate) for gram in grams])
    return component_scores(torch.cat(grams), weights, method)


@torch.no_grad()
def recalibrate(model: nn.Module, x: Float[Tensor, "n ..."]) -> None:
    """Set the running statistics of batch norms to mean and variance (n - 1) of what they read of ``x``, in place.

    One norm after the other, in the order in which they are reached, so that each reads what those before it give with
    their new statistics: neither batches nor the order of samples count. The model ends in evaluation mode. Raises
    InputError where a norm reads a single value a channel.
    """
    model.eval()
    norms: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, NORMS) and m.track_running_stats}
    reached: dict[str, None] = {}
    _read(model, norms, x[:1], lambda name, _: reached.update({name: None}))
    for name in reached:
        parts: list[Tensor] = []  # count, sum and sum of squares of each channel, by batch

        def add(_: str, read: Tensor, parts: list[Tensor] = parts) -> None:
            values = read.transpose(0, 1).flatten(1).double()
            parts.append(torch.stack((torch.ones_like(values).sum(1), values.sum(1), values.square().sum(1))))

        _read(model, {name: norms[name]}, x, add)
        count, total, squares = torch.stack(parts).sum(0)
        if count[0] < 2:
            raise InputError(f"recalibrate: batch norm {name!r} reads one value a channel; expected more samples")
        mean = total / count
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_((squares - count * mean.square()).clamp_min(0) / (count - 1))


def _read(model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, see: Callable[[str, Tensor], None]) -> None:
    """Run ``model`` on ``x`` in batches; ``see`` gets name and input of each of ``layers`` as it is called."""
    hooks = [m.register_forward_pre_hook(lambda _, given, name=n: see(name, given[0])) for n, m in layers.items()]
    try:
        for batch in x.split(BATCH):
            model(batch.to(device_of(model)))
    finally:
        for hook in hooks:
            hook.remove()
