"""GraNd: the norm of the gradient that a sample's loss has in the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from assay.curate.ghost import ghost_squares
from assay.runtime.checks import check_inputs, check_labels
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of, evaluating

Method = Literal["vmap", "loop", "ghost"]
METHODS: tuple[Method, ...] = ("vmap", "loop", "ghost")


def grand_scores(
    models: Sequence[nn.Module],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    params: Collection[str] | None = None,
    method: Method = "vmap",
    batch_size: int = 64,
) -> Float[Tensor, " n"]:
    """The mean over K networks of ||grad_w cross-entropy(f_w(x), y)||_2 (Paul et al., 2021, arXiv:2107.07075,
    definition 2.1), in evaluation mode; >= 0.

    ``params`` names the parameters that count (all). "vmap" takes ``batch_size`` per-sample gradients at once, "loop"
    one at a time, "ghost" only their norms, from the inputs of the layers and the gradients of their outputs (see
    ``ghost_squares``): one backward pass a batch. At initialisation, before any training, the score says little: the
    paper's result on it did not reproduce (Kirsch, 2023, arXiv:2303.14753). Raises InputError for no network, unknown
    parameters, labels that are no class, or a gradient that is not finite.
    """
    return grand_runs(models, x, y, params=params, method=method, batch_size=batch_size).mean(0)


def grand_runs(
    models: Sequence[nn.Module],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    params: Collection[str] | None = None,
    method: Method = "vmap",
    batch_size: int = 64,
) -> Float[Tensor, "k n"]:
    """The scores of each network alone; see ``grand_scores``."""
    check_inputs("GraNd", x)
    check_labels("GraNd", y, len(x))
    if not models or batch_size < 1:
        raise InputError(f"GraNd: {len(models)} networks, batch_size={batch_size}; expected at least 1 of each")
    if method not in METHODS:
        raise unknown("method of GraNd", str(method), METHODS)
    size = 1 if method == "loop" else batch_size
    runs = torch.stack([_norms(_Rule(model, params, method), x, y, size) for model in models])
    if not torch.isfinite(runs).all():
        raise InputError("GraNd: a gradient is not finite; expected a finite loss on every sample")
    return runs


@dataclass(frozen=True)
class _Rule:
    """Which network, which of its parameters, and how."""

    model: nn.Module
    params: Collection[str] | None
    method: Method

    @property
    def names(self) -> list[str]:
        known = [name for name, _ in self.model.named_parameters()]
        for name in self.params or ():
            if name not in known:
                raise unknown("parameter", name, known)
        chosen = known if self.params is None else [n for n in known if n in self.params]
        if not chosen:
            raise InputError("GraNd: no parameters; expected at least one that a gradient is taken in")
        return chosen

    def squares(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Squared gradient norms (b,) of a batch."""
        names = self.names
        if self.method == "ghost":
            return lambda x, y: ghost_squares(self.model, _loss, x, y, names)
        free = {name: p.detach() for name, p in self.model.named_parameters() if name in names}

        def loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return _loss(functional_call(self.model, dict(weights), (x[None],)), y[None])

        if self.method == "loop":
            return lambda x, y: _total(grad(loss)(free, x[0], y[0]), 0)[None]
        each = vmap(grad(loss), in_dims=(None, 0, 0))
        return lambda x, y: _total(each(free, x, y), 1)


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def _total(gradients: Mapping[str, Tensor], start: int) -> Tensor:
    """Squares summed over all parameters, from axis ``start`` on."""
    return torch.stack([g.square().flatten(start).sum(-1) for g in gradients.values()]).sum(0)


def _norms(rule: _Rule, x: Tensor, y: Tensor, size: int) -> Float[Tensor, " n"]:
    device = device_of(rule.model)
    with evaluating(rule.model), torch.no_grad():
        classes = rule.model(x[:1].to(device)).shape[1]
        check_labels("GraNd", y, len(x), classes)
        squares = rule.squares()
        parts = [
            squares(a.to(device), b.to(device)).detach().cpu()
            for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
    return torch.cat(parts).sqrt()
