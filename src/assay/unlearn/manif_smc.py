"""Unlearning single samples in representation space, by margins that a surrogate of the retrained model sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.detect.layers import captured, pooled
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import device_of
from assay.runtime.random import derive
from assay.subject import Subject, fresh
from assay.training import Plan, State, fit
from assay.training.engine import Hook
from assay.unlearn.base import Unlearner, keep_at
from assay.unlearn.mode_connectivity import SelfModeConnectivity, mixed, restandardised
from assay.unlearn.neighbourhoods import Neighbourhoods, manifold_triplet_loss

CHOICES = {
    "surrogate": ("bezier", "random_linear"),
    "center": ("surrogate", "reference"),
    "positive": ("random", "nearest"),
    "geometry": ("local", "class"),
    "hinge": ("sample", "batch"),
}
Margin = Callable[[Int[Tensor, " n"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class ManifoldForgotten:
    """The unlearned ``model``, and of each erased sample the last margin, the positions in ``retain`` of its
    neighbours, nearest first, and its gap (``Neighbourhoods.gaps``) under the subject's model and the unlearned one."""

    model: nn.Module
    margins_: Float[Tensor, " n"]
    neighbours_: Int[Tensor, "n k"]
    gaps_before_: Float[Tensor, " n"]
    gaps_after_: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class ManiFSMC(Unlearner):
    """Move each erased sample off the retained samples most like it, as far as a surrogate of the retrained model has
    it (Wang et al., 2026, arXiv:2605.22871). No label is read.

    S_k(x): the ``k`` retained samples with the highest cosine to x at ``feature``, c(x) the mean of their
    representations under the subject's model. Adam on mean [|z_p - c|^2 - |z_x - c|^2 + a(x)]_+ x ``loss_scale``, p
    drawn from S_k(x) at every step, one pass over ``forget`` an epoch; the head is left in place. a(x) is ``margin``: a
    number ("ManiF"), a function of the samples' indices, or "smc": the gap of x under the surrogate, so that the loss
    is 0 where the model has the gaps of the surrogate. The surrogate is taken at the start of every epoch: at ``t`` on
    the curve of ``SelfModeConnectivity`` from the present model to the subject's, of which ``smc_steps`` steps of Adam
    at ``smc_lr`` on the union of the S_k alone train the control point (``smc_loss``: its loss).

    The official code differs from the text, and each difference is an option: ``surrogate`` "random_linear", (1 - t)
    model + t w with new weights w at every batch, which nothing trains; ``center`` "reference", the margin's centre is
    the fixed c; ``positive`` "nearest"; ``normalize`` false (representations as they are, squared distances divided by
    their number of entries; there, not here, c alone is normalised); ``hinge`` "batch"; in an earlier version
    ``geometry`` "class". Its cross-entropy and reconstruction terms are left out. ``across``, for a class that is
    forgotten, keeps S_k to samples that the subject puts in another class; this is our extension. The paper scales the
    loss by 0.1 or 0.001, which Adam undoes. ``control`` makes the same steps on the neighbours' term alone.

    The surrogate's running statistics of batch norms are those of the S_k. Raises InputError for options out of range,
    k above the number of retained samples, representations that are not finite, and batch norms that read one value.
    """

    feature: str = "penultimate"
    k: int = 5
    margin: Literal["smc"] | float | Margin = "smc"
    surrogate: Literal["bezier", "random_linear"] = "bezier"
    center: Literal["surrogate", "reference"] = "surrogate"
    positive: Literal["random", "nearest"] = "random"
    t: float = 0.5
    smc_steps: int = 100
    smc_lr: float = 1e-3
    smc_loss: Literal["predictions", "labels", "mmcr"] = "predictions"
    epochs: int = 1
    lr: float = 5e-4
    batch_size: int = 16
    loss_scale: float = 1.0
    normalize: bool = True
    geometry: Literal["local", "class"] = "local"
    hinge: Literal["sample", "batch"] = "sample"
    across: bool = False

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(f"{name} of ManiFSMC", str(getattr(self, name)), known)
        if self.k < 1 or not self.loss_scale > 0:
            raise InputError(f"ManiFSMC: k={self.k}, loss_scale={self.loss_scale}; expected k >= 1, loss_scale > 0")
        if not callable(self.margin) and self.margin != "smc" and not isinstance(self.margin, (int, float)):
            raise InputError(f"ManiFSMC: margin={self.margin!r}; expected 'smc', a number or a function")
        self.curve()
        self.plan()

    def curve(self) -> SelfModeConnectivity:
        """How the surrogate is found."""
        return SelfModeConnectivity(
            t=self.t, steps=self.smc_steps, lr=self.smc_lr, loss=self.smc_loss, feature=self.feature
        )

    def plan(self) -> Plan:
        """Adam at a constant rate over what is erased."""
        return Plan(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, schedule="constant")

    def forget(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The unlearned model."""
        return self.fit(subject, forget, retain, seed=seed).model

    def control(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> nn.Module:
        """The same steps without the erased samples' term: the neighbours are held, nothing is moved off."""
        self.check(subject, forget, retain)
        return self._train(
            subject, forget, retain, self.neighbourhoods(subject.model, forget, retain, seed), seed, True
        )

    def stages(self, subject: Subject, forget: Data, retain: Data, *, seed: int) -> list[nn.Module]:
        """See Unlearner."""
        kept: list[nn.Module] = []
        each = -(-len(forget) // self.batch_size)
        ends = range(each, each * self.epochs, each)
        last = self.fit(subject, forget, retain, seed=seed, hooks=[keep_at(ends, kept)]).model
        return [*kept, last]

    def fit(
        self, subject: Subject, forget: Data, retain: Data, *, seed: int, hooks: Sequence[Hook] = ()
    ) -> ManifoldForgotten:
        """The unlearned model with margins, neighbours and gaps."""
        self.check(subject, forget, retain)
        around = self.neighbourhoods(subject.model, forget, retain, seed)
        margins = torch.full((len(forget),), torch.nan)
        model = self._train(subject, forget, retain, around, seed, False, margins, hooks)
        before, after = around.gaps(subject.model), around.gaps(model)
        return ManifoldForgotten(model, margins, around.positions, before, after)

    def neighbourhoods(self, model: nn.Module, forget: Data, retain: Data, seed: int) -> Neighbourhoods:
        """S_k of the erased samples under ``model``, and their centres."""
        return Neighbourhoods.of(
            model,
            forget,
            retain,
            k=self.k,
            feature=self.feature,
            normalize=self.normalize,
            geometry=self.geometry,
            across=self.across,
            seed=seed,
        )

    def loss(self, centre: Tensor, near: Tensor, erased: Tensor, margin: Tensor) -> Float[Tensor, ""]:
        """The triplet loss of a batch of representations (b, d)."""
        return manifold_triplet_loss(centre, near, erased, margin, self.hinge)

    def _train(
        self,
        subject: Subject,
        forget: Data,
        retain: Data,
        around: Neighbourhoods,
        seed: int,
        control: bool,
        margins: Tensor | None = None,
        hooks: Sequence[Hook] = (),
    ) -> nn.Module:
        """One run of the engine over what is erased; ``margins`` are written as they are set."""
        device, order = device_of(subject.model), forget.index.argsort()
        known = forget.index[order]

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            rows = order[torch.searchsorted(known, batch.index.cpu())]
            if margins is not None:
                self._set(margins, model, subject.model, around, batch, rows, state)
            drawn = state.draws("positive", batch.index).integers(self.k, 1)[:, 0].cpu()
            chosen = around.rows[rows, drawn if self.positive == "random" else 0]
            with captured(model, [around.layer]) as caught:
                model(torch.cat((around.near.x[chosen].to(device), batch.x)))
            near, erased = around.embed(pooled(caught[around.layer])).chunk(2)
            centre = around.centres[rows].to(near)
            if margins is None:
                return self.loss_scale * (near - centre).square().sum(1).mean()
            return self.loss_scale * self.loss(centre, near, erased, margins[rows].to(near))

        return fit(subject.model, forget, objective, self.plan(), seed=seed, hooks=hooks)

    def _set(
        self,
        margins: Tensor,
        model: nn.Module,
        original: nn.Module,
        around: Neighbourhoods,
        batch: Batch,
        rows: Tensor,
        state: State,
    ) -> None:
        """Write the margins that are due at this step: of all samples where an epoch starts, else of the batch."""
        centres = around.centres if self.center == "reference" else None
        starts = state.step % -(-len(margins) // self.batch_size) == 0
        if callable(self.margin):
            margins[rows] = self.margin(batch.index.cpu()).to(margins)
        elif self.margin != "smc":
            margins[rows] = float(self.margin)
        elif self.surrogate == "random_linear":
            blend = fresh(original, seed=derive(state.seed, "random", state.step))
            with torch.no_grad():
                for name, p in mixed((model, blend), (1 - self.t, self.t)).items():
                    blend.get_parameter(name).copy_(p)
            blend = restandardised(blend, around.near.x)
            margins[rows] = around.gaps(blend, rows=rows, centres=centres)
        elif starts:
            curve = self.curve().fit(model, original, around.near, seed=derive(state.seed, "smc", state.epoch))
            margins.copy_(around.gaps(curve.at(self.t), centres=centres))
