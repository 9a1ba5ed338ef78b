"""Subset fidelity: how much of a layer's output a few of its components can give back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import BATCH, device_of, evaluating

Ranking = Literal["naive", "raw", "greedy"]
Method = Literal["naive", "raw", "greedy", "exhaustive"]
Aggregate = Literal["energy", "mean"]
RIDGE = 1e-6
EXHAUSTIVE = 20_000

Gram = Float[Tensor, "o c c"]


def energies(gram: Gram) -> Float[Tensor, " o"]:
    """E|Y_i|^2 = 1' G 1 of each output."""
    return gram.sum((1, 2))


def output_weights(gram: Gram, aggregate: Aggregate) -> Float[Tensor, " o"]:
    """What each output counts for in a layer's score: its share of the energy, or the same for all; sums to 1."""
    if aggregate not in get_args(Aggregate):
        raise unknown("aggregate", str(aggregate), get_args(Aggregate))
    energy = energies(gram)
    if aggregate == "energy" and bool(energy.sum() > 0):
        return energy / energy.sum()
    return torch.full_like(energy, 1 / len(energy))


def _shares(numerator: Float[Tensor, "o ..."], energy: Float[Tensor, " o"]) -> Float[Tensor, "o ..."]:
    """Over the energy; 1 where there is none, for nothing is lost there."""
    safe = energy.where(energy > 0, torch.ones_like(energy)).reshape(-1, *[1] * (numerator.dim() - 1))
    dead = (energy <= 0).reshape(safe.shape)
    return torch.where(dead, torch.ones_like(numerator), numerator / safe)


def singleton_fidelity(gram: Gram) -> Float[Tensor, "o c"]:
    """FS_i({c}) = b_c^2 / (G_cc 1'G1), the squared cosine of a component with the whole output; in [0, 1]."""
    diagonal, b = gram.diagonal(dim1=1, dim2=2), gram.sum(2)
    tiny = torch.finfo(gram.dtype).tiny
    return _shares(torch.where(diagonal > 0, b.square() / diagonal.clamp_min(tiny), 0.0), energies(gram))


def raw_fidelity(gram: Gram) -> Float[Tensor, "o c"]:
    """1 - E|Y_i - A_ic|^2 / E|Y_i|^2 = (2 b_c - G_cc) / 1'G1: the component as it is, at most 1 and unbounded below."""
    return _shares(2 * gram.sum(2) - gram.diagonal(dim1=1, dim2=2), energies(gram))


def subset_fidelity(gram: Gram, subset: Int[Tensor, " k"]) -> Float[Tensor, " o"]:
    """FS_i(S) = b_S' G_SS^+ b_S / 1'G1 of each output; in [0, 1], never falling as S grows."""
    part, b = gram[:, subset][:, :, subset], gram.sum(2)[:, subset]
    inverse = torch.linalg.pinv(part, hermitian=True, rtol=1e-12)
    return _shares(torch.einsum("oc,ocd,od->o", b, inverse, b), energies(gram)).clamp(0, 1)


def compensation(gram: Gram, subset: Int[Tensor, " k"], ridge: float = RIDGE) -> Float[Tensor, "o k"]:
    """delta* = (G_SS + ``ridge`` tr(G_SS) / k I)^-1 b_S of each output; 1 where an output is zero on S."""
    part, b = gram[:, subset][:, :, subset], gram.sum(2)[:, subset]
    trace = part.diagonal(dim1=1, dim2=2).sum(1)
    load = torch.where(trace > 0, ridge * trace / len(subset), torch.ones_like(trace))
    eye = torch.eye(len(subset), dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.pinv(part + load[:, None, None] * eye, hermitian=True, rtol=1e-12)
    delta = torch.einsum("ocd,od->oc", inverse, b)
    return torch.where(trace[:, None] > 0, delta, torch.ones_like(delta))


def greedy_gains(gram: Gram, weights: Float[Tensor, " o"]) -> tuple[Int[Tensor, " c"], Float[Tensor, " c"]]:
    """The order in which components raise sum_i w_i FS_i(S) most, and by how much each does when its turn comes.

    Each step takes out of all components what the new one explains (Gram-Schmidt on the Gram matrices).
    """
    left, b, energy = gram.clone(), gram.sum(2), energies(gram)
    floor = 1e-10 * gram.diagonal(dim1=1, dim2=2).amax(1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    scale = torch.where(energy > 0, weights / energy.where(energy > 0, torch.ones_like(energy)), 0.0)
    open_ = torch.ones(gram.shape[1], dtype=torch.bool, device=gram.device)
    order, gains = [], []
    for _ in range(gram.shape[1]):
        own = left.diagonal(dim1=1, dim2=2)
        gain = torch.where(own > floor, b.square() / own.clamp_min(floor), 0.0)
        total = (scale[:, None] * gain).sum(0).masked_fill(~open_, -1.0)
        best = int(total.argmax())
        order.append(best)
        gains.append(total[best])
        open_[best] = False
        column, d = left[:, :, best], own[:, best]
        step = torch.where(d > floor[:, 0], 1 / d.clamp_min(floor[:, 0]), 0.0)
        b = b - column * (b[:, best] * step)[:, None]
        left = left - torch.einsum("oc,od,o->ocd", column, column, step)
    return torch.tensor(order, device=gram.device), torch.stack(gains)


def component_scores(gram: Gram, weights: Float[Tensor, " o"], method: Ranking) -> Float[Tensor, " c"]:
    """The score of each component, higher is kept first.

    "naive": sum_i w_i of the singleton fidelities; "raw": of the raw ones; "greedy": the gain at its turn, made not to
    rise along the order, so that a sort gives the order back.
    """
    if method == "greedy":
        order, gains = greedy_gains(gram, weights)
        falling = gains.cummin(0).values
        ties = torch.linspace(1e-12, 0, len(order), dtype=gram.dtype, device=gram.device)
        return torch.empty_like(gains).index_put((order,), falling + ties)
    known: dict[str, Callable[[Gram], Tensor]] = {"naive": singleton_fidelity, "raw": raw_fidelity}
    if method not in known:
        raise unknown("ranking", str(method), get_args(Ranking))
    return (weights[:, None] * known[method](gram)).sum(0)


@dataclass(eq=False)
class FittedFidelity:
    """What ``SubsetFidelity.fit`` returns. Components are numbered from 0; those of a grouped convolution within its
    group. ``moments_[layer]`` (groups, d, d) is E[u u'] over samples and positions, u the inputs that one output sees,
    and ``means_[layer]`` (groups, d) E[u]; ``n_`` counts samples. ``center``: fidelities of Y - E[Y].
    """

    weights_: Mapping[str, Float[Tensor, "g o c s"]]
    moments_: Mapping[str, Float[Tensor, "g d d"]]
    means_: Mapping[str, Float[Tensor, "g d"]]
    n_: int
    center: bool = False
    aggregate: Aggregate = "energy"

    def gram(self, layer: str) -> Gram:
        """G^(i)_cc' = E<A_ic, A_ic'>, a position's mean, of each output i; float64."""
        if layer not in self.weights_:
            raise unknown("layer", layer, self.weights_)
        weight, moment = self.weights_[layer], self.moments_[layer]
        if self.center:
            mean = self.means_[layer]
            moment = moment - mean[:, :, None] * mean[:, None]
        g, _, c, s = weight.shape
        found = torch.einsum("gocs,gcsdt,godt->gocd", weight, moment.reshape(g, c, s, c, s), weight).flatten(0, 1)
        dead = int((energies(found) <= 0).sum())
        if dead:
            warnings.warn(
                f"subset fidelity: {dead} outputs of {layer!r} are always 0; their fidelity is 1", RuntimeWarning, 3
            )
        return found

    def singleton(self, layer: str) -> Float[Tensor, "o c"]:
        """The fidelity of every component alone, of every output."""
        return singleton_fidelity(self.gram(layer))

    def score(self, layer: str, subset: Sequence[int] | Tensor, output: int | None = None) -> float:
        """FS(``subset``) of one output, or of the layer: the outputs' weighted mean."""
        gram = self.gram(layer)
        found = subset_fidelity(gram, self._subset(gram, subset))
        return float((output_weights(gram, self.aggregate) * found).sum() if output is None else found[output])

    def channel_scores(self, layer: str, method: Ranking = "naive") -> Float[Tensor, " c"]:
        """See ``component_scores``."""
        gram = self.gram(layer)
        return component_scores(gram, output_weights(gram, self.aggregate), method)

    def best_subset(self, layer: str, k: int, method: Method = "naive", output: int | None = None) -> Int[Tensor, " k"]:
        """``k`` >= 1 components, ascending: the highest scores, or all subsets tried ("exhaustive", at most 20,000)."""
        gram = self.gram(layer)
        gram = gram if output is None else gram[output : output + 1]
        c = gram.shape[1]
        if not 1 <= k <= c:
            raise InputError(f"best_subset of {layer!r}: k={k}; expected 1 to {c}")
        weights = output_weights(gram, self.aggregate)
        if method != "exhaustive":
            return component_scores(gram, weights, method).topk(k).indices.sort().values
        tried = [torch.tensor(s) for _, s in zip(range(EXHAUSTIVE + 1), combinations(range(c), k), strict=False)]
        if len(tried) > EXHAUSTIVE:
            raise InputError(
                f"best_subset of {layer!r}: more than {EXHAUSTIVE} subsets of {k}; expected another method"
            )
        return max(tried, key=lambda s: float((weights * subset_fidelity(gram, s)).sum()))

    def compensation(self, layer: str, subset: Sequence[int] | Tensor, ridge: float = RIDGE) -> Float[Tensor, "o k"]:
        """delta* of every output for the components kept."""
        gram = self.gram(layer)
        return compensation(gram, self._subset(gram, subset), ridge)

    def shift(self, layer: str, subset: Int[Tensor, " k"], delta: Float[Tensor, "o k"]) -> Float[Tensor, " o"]:
        """What the bias gains when ``subset`` scaled by ``delta`` stands for all: 0 unless fidelities are centred."""
        weight, mean = self.weights_[layer], self.means_[layer]
        if not self.center:
            return delta.new_zeros(len(delta))
        whole = torch.einsum("gocs,gcs->goc", weight, mean.reshape(weight.shape[0], *weight.shape[2:])).flatten(0, 1)
        return whole.sum(1) - (delta * whole[:, subset]).sum(1)

    def _subset(self, gram: Gram, subset: Sequence[int] | Tensor) -> Int[Tensor, " k"]:
        chosen = torch.as_tensor(subset, dtype=torch.int64)
        c = gram.shape[1]
        if chosen.dim() != 1 or len(chosen) == 0 or len(chosen.unique()) < len(chosen) or not chosen.min() >= 0:
            raise InputError(f"subset {subset}: expected different components from 0 to {c - 1}, at least one")
        if int(chosen.max()) >= c:
            raise InputError(f"subset: component {int(chosen.max())}; expected 0 to {c - 1}")
        return chosen


@dataclass(frozen=True, kw_only=True)
class SubsetFidelity:
    """How much of a layer's output a subset of its components gives back (Kashyap et al., 2025, arXiv:2511.19566).

    An output is a sum Y_i = sum_c A_ic, less its bias: A_ic is the slice of a convolution's kernel on input channel c,
    or of a linear layer on ``blocks[layer]`` >= 1 neighbouring inputs (1 where it is not named: the neurons of a
    transformer's feed-forward layer; the width of a head for attention heads; the size of a map after a flatten).
    FS_i(S) = 1 - min_delta E|Y_i - sum_S delta_c A_ic|^2 / E|Y_i|^2, over samples and positions. All of it follows from
    the second moment of the inputs, taken in one forward pass in float64: no labels, no gradients. ``layer_names``
    absent: every Conv2d and Linear; ``n_max``: samples at most; ``center``: of Y less its mean. Raises InputError where
    there are no samples, for a layer of another type, and for blocks that do not divide its inputs.
    """

    kind: ClassVar[str] = "function"

    layer_names: tuple[str, ...] | None = None
    n_max: int | None = None
    center: bool = False
    aggregate: Aggregate = "energy"
    blocks: Mapping[str, int] = field(default_factory=dict)

    def fit(self, model: nn.Module, x: Tensor | Iterable[Tensor]) -> FittedFidelity:
        """The fidelities of ``model`` on samples ``x`` (n, ...), or on batches of them."""
        layers = self._layers(model)
        taken = {name: _Moments(layer) for name, layer in layers.items()}
        handles = [layers[n].register_forward_pre_hook(taken[n].hook) for n in layers]
        seen, device = 0, device_of(model)
        try:
            with evaluating(model), torch.no_grad():
                for batch in x.split(BATCH) if isinstance(x, Tensor) else x:
                    rest = len(batch) if self.n_max is None else min(len(batch), self.n_max - seen)
                    if rest <= 0:
                        break
                    check_inputs("SubsetFidelity", batch)
                    model(batch[:rest].to(device))
                    seen += rest
        finally:
            for handle in handles:
                handle.remove()
        if seen == 0:
            raise InputError("SubsetFidelity: no samples; expected at least one")
        unused = [n for n in layers if taken[n].count == 0]
        if unused:
            raise InputError(f"SubsetFidelity: layer {unused[0]!r} was not run; expected layers that the model uses")
        weights = {n: self._components(n, layers[n]) for n in layers}
        moments = {n: (m.square / m.count).cpu() for n, m in taken.items()}
        means = {n: (m.total / m.count).cpu() for n, m in taken.items()}
        return FittedFidelity(weights, moments, means, seen, self.center, self.aggregate)

    def _layers(self, model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
        modules = dict(model.named_modules())
        additive = {n: m for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)}
        if self.layer_names is None:
            if not additive:
                raise InputError("SubsetFidelity: the model has no convolutional or linear layer")
            return additive
        for name in self.layer_names:
            if name not in modules:
                raise unknown("layer", name, additive)
            if name not in additive:
                kind = type(modules[name]).__name__
                raise InputError(
                    f"SubsetFidelity: layer {name!r} is {kind}; expected Conv2d or Linear, sums of components"
                )
        return {n: additive[n] for n in self.layer_names}

    def _components(self, name: str, layer: nn.Conv2d | nn.Linear) -> Float[Tensor, "g o c s"]:
        weight, groups = layer.weight.detach().cpu().double(), getattr(layer, "groups", 1)
        per = self.blocks.get(name, 1)
        if weight.shape[1] % per or per < 1:
            raise InputError(f"SubsetFidelity: blocks of {per} in {name!r}; expected a divisor of {weight.shape[1]}")
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1] // per, -1)
        return parts


class _Moments:
    """Running sums of u and u u' of what the outputs of one layer see."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        groups = getattr(layer, "groups", 1)
        d = layer.weight[0].numel()
        self.layer, self.count = layer, 0
        self.square = torch.zeros(groups, d, d, dtype=torch.float64, device=layer.weight.device)
        self.total = torch.zeros(groups, d, dtype=torch.float64, device=layer.weight.device)

    def hook(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        u = self._seen(inputs[0].detach())
        self.square += torch.einsum("gnd,gne->gde", u, u)
        self.total += u.sum(1)
        self.count += u.shape[1]

    def _seen(self, x: Tensor) -> Float[Tensor, "g n d"]:
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return x.double().reshape(1, -1, x.shape[-1])
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x.double(), layer._reversed_padding_repeated_twice, mode=mode)
        size: Any = layer.kernel_size
        patches = F.unfold(x, size, dilation=layer.dilation, stride=layer.stride)
        n, d, places = patches.shape
        groups = layer.groups
        return patches.reshape(n, groups, d // groups, places).permute(1, 0, 3, 2).reshape(groups, n * places, -1)
