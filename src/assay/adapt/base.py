"""Heads that are trained on the features of an encoder which is left as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.adapt.nmtune_head import NMTuneHead
from assay.data import Batch, Data
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.runtime.random import Draws, seeded
from assay.training import Plan, State, fit

SECOND = "second view"


class Standardised(nn.Module):
    """A head behind (F - mean) / scale; both (d,) are buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, head: NMTuneHead, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def standard(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The features in the head's units."""
        return (features - self.mean) / self.scale

    def transform(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The head's reshaped features Z."""
        return self.head.transform(self.standard(features))

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        return self.head(self.standard(features))


@dataclass(frozen=True)
class TunedFeatures:
    """``model_`` maps features (n, d) to logits (n, c): behind an encoder, nn.Sequential(encoder, model_) classifies
    its inputs. ``classes_`` (c,) are the labels."""

    model_: Standardised
    classes_: np.ndarray

    def transform(self, features: Any) -> Float[np.ndarray, "n d"]:
        """Z of the features, the head in evaluation mode."""
        x = self._checked(features)
        with torch.no_grad():
            return self.model_.transform(x).numpy()

    def decision_function(self, features: Any) -> Float[np.ndarray, "n c"]:
        """Logits."""
        return predict(self.model_, self._checked(features)).numpy()

    def predict_proba(self, features: Any) -> Float[np.ndarray, "n c"]:
        """Softmax of the logits."""
        return torch.from_numpy(self.decision_function(features)).softmax(1).numpy()

    def predict(self, features: Any) -> np.ndarray:
        """Labels (n,)."""
        return self.classes_[self.decision_function(features).argmax(1)]

    def score(self, features: Any, y: Any) -> float:
        """Accuracy on labels (n,)."""
        return float(np.mean(self.predict(features) == np.asarray(y)))

    def _checked(self, features: Any) -> Tensor:
        x, d = as_features("TunedFeatures", features), len(self.model_.mean)
        if x.shape[1] != d:
            raise InputError(f"TunedFeatures: {x.shape[1]} features; expected {d}, as fitted")
        return x


@dataclass(frozen=True, kw_only=True)
class FeatureTuner:
    """``fit(F, y, F2=None, *, seed) -> TunedFeatures`` on features (n, d) and labels (n,) of any values.

    AdamW under a cosine schedule, by cross-entropy and whatever terms a subclass adds. F2 (n, d) are the features of a
    second view of the same samples: each step then sees both. ``normalize`` standardises features by the training
    samples (constant ones are only centred). A last batch of one sample is left out, as batch norm has no use for it.
    InputError for features that are not finite or all zero in a row, for one class, fewer than two samples and F2 of
    another shape.
    """

    kind: ClassVar[str] = "function"
    contract: ClassVar[bool] = True

    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.0
    normalize: bool = False

    def __post_init__(self) -> None:
        rates = 0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.warmup < 1
        if self.epochs < 0 or self.batch_size < 2 or not rates:
            given = (
                f"epochs={self.epochs}, batch_size={self.batch_size}, lr={self.lr}, weight_decay={self.weight_decay}, "
                f"warmup={self.warmup}"
            )
            raise InputError(
                f"{type(self).__name__}: {given}; expected epochs, weight_decay >= 0, batches >= 2, lr > 0, "
                "warmup in [0, 1)"
            )

    def head(self, dim: int, classes: int) -> NMTuneHead:
        """The head before training."""
        raise TypeError(f"{type(self).__name__} states no head")

    def terms(self, z: Float[Tensor, "v d"], features: Float[Tensor, "b d"]) -> Float[Tensor, ""] | None:
        """What is added to the cross-entropy, of Z of all views and the features of the first."""
        return None

    def fit(self, features: Any, y: Any, second: Any = None, *, seed: int = 0) -> TunedFeatures:
        """A head for these features and labels; ``second`` are those of other views."""
        where = type(self).__name__
        x, labels = as_features(where, features), np.asarray(y)
        if labels.shape != (len(x),) or len(x) < 2:
            raise InputError(f"{where}: labels {labels.shape} for {len(x)} samples; expected one each, two or more")
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"{where}: {len(classes)} class; expected at least two")
        fields = {} if second is None else {SECOND: as_features(where, second)}
        if second is not None and fields[SECOND].shape != x.shape:
            shapes = f"{tuple(fields[SECOND].shape)} and {tuple(x.shape)}"
            raise InputError(f"{where}: views {shapes}; expected the same shape")
        names, limits = tuple(map(str, classes.tolist())), (-math.inf, math.inf)
        data = Data(x, torch.from_numpy(codes), names, limits, "features", fields=fields)
        with seeded(seed, "head"):
            head = self.head(x.shape[1], len(classes))
        start = Standardised(head, *self._scaling(x))
        model = fit(start, data, self.objective, self.plan(len(x)), seed=seed)
        assert isinstance(model, Standardised)
        return TunedFeatures(model, classes)

    def from_encoder(
        self,
        encoder: nn.Module,
        data: Data,
        *,
        augment: Callable[[Tensor, Draws], Tensor] | None = None,
        seed: int = 0,
    ) -> TunedFeatures:
        """Fit on what ``encoder`` maps the data to, (n, d), in evaluation mode; it is not changed.

        With ``augment`` on two views of each sample, else on the samples as they are.
        """
        check_inputs(type(self).__name__, data.x, data.y, data.bounds)
        if augment is None:
            return self.fit(predict(encoder, data.x), data.y, seed=seed)
        first, second = (predict(encoder, augment(data.x, Draws(seed, name, data.index))) for name in ("one", "two"))
        return self.fit(first, data.y, second, seed=seed)

    def plan(self, n: int) -> Plan:
        """The training plan for n samples."""
        return Plan(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="adamw",
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            drop_last=n % self.batch_size == 1,
        )

    def objective(self, model: nn.Module, batch: Batch, state: State) -> Float[Tensor, ""]:
        """Cross-entropy over all views, and the terms."""
        assert isinstance(model, Standardised)
        views = [batch.x, *batch.fields.values()]
        first = model.standard(batch.x)
        z = model.transform(torch.cat(views))
        loss = F.cross_entropy(model.head.classifier(z), batch.y.repeat(len(views)))
        added = self.terms(z, first)
        return loss if added is None else loss + added

    def _scaling(self, x: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
        if not self.normalize:
            return torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        deviation = x.std(0)
        return x.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def as_features(where: str, features: Any) -> Float[Tensor, "n d"]:
    """Features in float32, finite, (n, d), without rows of zeros; InputError otherwise."""
    x = torch.as_tensor(features.detach().cpu() if isinstance(features, Tensor) else np.asarray(features)).float()
    check_inputs(where, x)
    if x.dim() != 2:
        raise InputError(f"{where}: features have shape {tuple(x.shape)}; expected (n, d)")
    zero = int((~x.any(1)).sum())
    if zero:
        raise InputError(f"{where}: {zero} rows of features are all zero; expected none, they have no direction")
    return x
