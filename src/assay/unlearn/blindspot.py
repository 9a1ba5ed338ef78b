"""Unlearning in regression with a proxy that never saw what is forgotten."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.inference import device_of
from assay.runtime.random import derive
from assay.subject import Subject, fresh
from assay.training import Plan, State, fit
from assay.unlearn.base import joined
from assay.unlearn.passes import Pass, PassLoss, PassUnlearner
from assay.unlearn.regression import distance, targets

NONLINEAR = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)


def attention_distance(a: Float[Tensor, "n ch ..."], b: Float[Tensor, "n ch ..."]) -> Float[Tensor, ""]:
    """Mean over samples and positions of (q(a) - q(b))^2, q the mean of squares over channels, flattened and scaled to
    length 1 a sample (Zagoruyko & Komodakis, 2017, arXiv:1612.03928, equation 2; a map of zeros stays one)."""
    if a.shape != b.shape or a.dim() < 3:
        raise InputError(f"attention_distance: {tuple(a.shape)}, {tuple(b.shape)}; expected one shape (n, c, ...)")
    p, q = (F.normalize(m.square().mean(1).flatten(1), dim=1) for m in (a, b))
    return (p - q).square().mean()


@contextmanager
def activations(model: nn.Module, layers: tuple[str, ...] | None) -> Iterator[list[Tensor]]:
    """Collects what the named layers, else all nonlinear ones, put out, of at least 3 dimensions, call by call."""
    modules, caught = dict(model.named_modules()), list[Tensor]()
    missing = [n for n in layers or () if n not in modules]
    if missing:
        raise InputError(f"activations: the model has no layer {missing[0]!r}; expected one of {', '.join(modules)}")

    def keep(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        if out.dim() >= 3:
            caught.append(out)

    chosen = [modules[n] for n in layers] if layers else [m for m in modules.values() if isinstance(m, NONLINEAR)]
    handles = [m.register_forward_hook(keep) for m in chosen]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class BlindspotUnlearn(PassUnlearner):
    """Follow a proxy on what is forgotten: new weights, trained briefly on ``retain`` (Tarun et al., 2022,
    arXiv:2210.08196, section 4.2, "blindspot unlearning").

    p L_f + (1 - p) L_r over both sets shuffled together, p the forgotten share of the batch. L_r is the mean absolute
    error on its retained rows; L_f on its forgotten ones |f(x) - f_proxy(x)| + ``at_beta`` sum_l of
    attention_distance between the outputs of ``layers``, by default all nonlinear layers with feature maps (n, c, ...).
    Where there are none the second term is left out, with a warning. The proxy has ``proxy_epochs`` of Adam at
    ``proxy_lr`` and the weights of ``reinit(seed)``, by default the architecture's own new ones. Targets are in the
    field "target", (n,) or (n, k) floats; outputs (n,), (n, 1) or (n, k). ``control`` learns the true targets of both
    sets. Raises InputError for class labels. Other options: see PassUnlearner.
    """

    task: ClassVar[str] = "regression"

    epochs: int = 1
    lr: float = 1e-3
    batch_size: int = 256
    optimizer: Literal["sgd", "adam"] = "adam"
    proxy_epochs: int = 2
    proxy_lr: float = 1e-2
    at_beta: float = 50.0
    layers: tuple[str, ...] | None = None
    reinit: Callable[[int], nn.Module] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proxy_epochs < 1 or not (self.proxy_lr > 0 and self.at_beta >= 0):
            raise InputError(
                f"BlindspotUnlearn: proxy_epochs={self.proxy_epochs}, proxy_lr={self.proxy_lr}, at_beta={self.at_beta}"
                "; expected proxy_epochs >= 1, proxy_lr > 0, at_beta >= 0"
            )

    def passes(self, forget: Data, retain: Data, *, seed: int) -> list[list[Pass]]:
        """Every epoch goes over both sets together."""
        return [[("both", joined(forget, retain))]] * self.epochs

    def start(self, subject: Subject, *, seed: int) -> nn.Module:
        """The weights that the proxy starts from."""
        return self.reinit(seed) if self.reinit is not None else fresh(subject.model, seed=seed)

    def proxy(self, subject: Subject, retain: Data, *, seed: int) -> nn.Module:
        """The proxy: it sees ``retain`` alone."""
        plan = Plan(epochs=self.proxy_epochs, batch_size=self.batch_size, lr=self.proxy_lr, schedule="constant")

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            return distance(model(batch.x), targets(batch, "BlindspotUnlearn"))

        seed = derive(seed, "proxy")
        return fit(self.start(subject, seed=seed), retain, objective, plan, seed=seed)

    def blend(
        self, model: nn.Module, proxy: nn.Module, batch: Batch, forgotten: Bool[Tensor, " b"], share: float
    ) -> Float[Tensor, ""]:
        """``share`` L_f + (1 - ``share``) L_r, each over its rows."""
        aims = targets(batch, "BlindspotUnlearn")
        with activations(model, self.layers) as own:
            outputs = model(batch.x).reshape(len(aims), -1)
        with torch.no_grad(), activations(proxy, self.layers) as taught:
            followed = proxy(batch.x).reshape(len(aims), -1)
        kept = distance(outputs[~forgotten], aims[~forgotten])
        lost = distance(outputs[forgotten], followed[forgotten])
        if self.at_beta > 0 and own and forgotten.any():
            maps = [attention_distance(a[forgotten], b[forgotten]) for a, b in zip(own, taught, strict=True)]
            lost = lost + self.at_beta * torch.stack(maps).sum()
        return share * lost + (1 - share) * kept

    def losses(self, subject: Subject, forget: Data, retain: Data, *, seed: int, control: bool) -> PassLoss:
        """The blend over a batch; the control's flags no row."""
        targets(forget, "BlindspotUnlearn")
        proxy = self.proxy(subject, retain, seed=seed)
        with torch.no_grad(), activations(proxy, self.layers) as found:
            proxy(forget.x[:1].to(device_of(proxy)))
        if self.at_beta > 0 and not found:
            warnings.warn(
                "BlindspotUnlearn: no layer has feature maps; no attention term", RuntimeWarning, stacklevel=2
            )

        def loss(model: nn.Module, name: str, batch: Batch, state: State) -> Tensor:
            forgotten = torch.isin(batch.index, forget.index.to(batch.index.device)) & (not control)
            return self.blend(model, proxy, batch, forgotten, float(forgotten.double().mean()))

        return loss
