"""BEYOND: an input is compared with its own neighbours in a network that was trained without labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.data import Data
from assay.detect.base import Detector, FittedDetector
from assay.nets import SmallCNN
from assay.represent import Augmentation, SimSiam, linear_classifier
from assay.runtime.content import content_index
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import check_logits, device_of, evaluating
from assay.runtime.random import Draws, seeded

APART = 0x1F3D5B79A2C4E687  # spreads the neighbours of one input over the streams
QUANTILE = 0.05  # the share of clean similarities below the threshold of the counts


@dataclass(kw_only=True)
class FittedBEYOND(FittedDetector):
    """Score in [-1, 1]: -q_(K), or in mode "counts" the larger share of neighbours that disagree.

    ``backbone_``, ``projector_`` and ``classifier_`` are the self-supervised branch; ``similar_`` is the similarity
    from which a neighbour counts as near, ``least_`` the counts (labels, similarities) of the data of ``fit``.
    """

    backbone_: nn.Module
    projector_: nn.Module
    classifier_: nn.Module
    augment: Augmentation
    k: int
    alpha: float
    K: int
    mode: str
    consistency: str
    centred: bool
    seed: int
    similar_: float = 0.0
    counts_: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))

    def decision(self, x: Float[Tensor, "n ..."]) -> Int[Tensor, " n"]:
        """The label that neighbours have to agree with: the target's, never that of the branch itself."""
        with torch.no_grad():
            return self.model(x).argmax(1)

    def neighbours(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k ..."]:
        """``k`` views of each input, each with a draw of its own that follows from the input and the seed."""
        number = torch.arange(self.k) * APART
        index = (content_index(x)[:, None] ^ number[None]) & 0x7FFFFFFFFFFFFFFF
        views = self.augment(x.repeat_interleave(self.k, 0), Draws(self.seed, "neighbours", index.flatten()))
        if views.shape[1:] != x.shape[1:]:
            raise InputError(f"BEYOND: augment gives {tuple(views.shape[1:])}; expected {tuple(x.shape[1:])}")
        return views.reshape(len(x), self.k, *x.shape[1:])

    def parts(self, x: Float[Tensor, "n ..."]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k c"], Tensor]:
        """cos(r(x), r(x^i)), the branch's logits of the neighbours, and the label to agree with."""
        hidden = self.backbone_(self.neighbours(x).flatten(0, 1))
        around = self.projector_(hidden).reshape(len(x), self.k, -1)
        own = self.projector_(self.backbone_(x))
        logits = self.classifier_(hidden).reshape(len(x), self.k, -1)
        return F.cosine_similarity(own[:, None], around, dim=2), logits, self.decision(x)

    def label_term(self, logits: Float[Tensor, "n k c"], label: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
        """cos(one-hot label, logits), or 1 where the neighbour is given that label and else 0."""
        if self.consistency == "hard":
            return (logits.argmax(2) == label[:, None]).to(logits)
        if self.centred:
            logits = logits - logits.mean(2, keepdim=True)
        own = logits.gather(2, label[:, None, None].expand(-1, self.k, 1))[:, :, 0]
        return own / logits.norm(dim=2).clamp(min=1e-12)

    def combined(self, similarity: Float[Tensor, "n k"], agreement: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """-q_(K): minus the K-th largest of alpha l_i + (1 - alpha) s_i."""
        q = self.alpha * agreement + (1 - self.alpha) * similarity
        return -q.sort(dim=1, descending=True).values[:, self.K - 1]

    def graph(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """See FittedDetector; of the order statistic also in mode "counts", whose counts have no slope."""
        similarity, logits, label = self.parts(x)
        return self.combined(similarity, self.label_term(logits, label)).double()

    def details(self, x: Float[Tensor, "n ..."]) -> dict[str, Tensor]:
        """``sim`` (n, k) and ``label_agree`` (n, k) bool for every neighbour."""
        found = self._read(self.check(x))
        return {"sim": found["sim"], "label_agree": found["label_agree"]}

    def counts(self, x: Float[Tensor, "n ..."]) -> Int[Tensor, "n 2"]:
        """How many neighbours have the target's label, and how many are near (section 3)."""
        found = self._read(x)
        return torch.stack((found["label_agree"].sum(1), (found["sim"] > self.similar_).sum(1)), 1)

    def scores(self, x: Tensor) -> Float[Tensor, " n"]:
        if self.mode == "counts":
            return 1 - self.counts(x).amin(1).double() / self.k
        return self._read(x)["score"].double()

    def predict(self, x: Float[Tensor, "n ..."], fpr: float = 0.05) -> Bool[Tensor, " n"]:
        """Whether each input is refused. In mode "counts": one of both counts lies below what all but fpr / 2 of the
        data of ``fit`` reach; else the score exceeds ``threshold(fpr)``."""
        if self.mode != "counts":
            return self.score(x) > self.threshold(fpr)
        x = self.check(x)
        if not 0 < fpr < 1:
            raise InputError(f"BEYOND.predict: fpr is {fpr}; expected 0 < fpr < 1")
        least = torch.from_numpy(np.quantile(self.counts_, fpr / 2, axis=0, method="lower"))
        return (self.counts(x) < least).any(1)

    def _read(self, x: Tensor) -> dict[str, Tensor]:
        device, rows = device_of(self.model), max(self.batch_size // 16, 2)
        parts: dict[str, list[Tensor]] = {"sim": [], "label_agree": [], "score": []}
        with evaluating(self.networks), torch.no_grad():
            for part in x.split(rows):
                similarity, logits, label = self.parts(part.to(device))
                parts["sim"].append(similarity.cpu())
                parts["label_agree"].append((logits.argmax(2) == label[:, None]).cpu())
                parts["score"].append(self.combined(similarity, self.label_term(logits, label)).cpu())
        return {name: torch.cat(found) for name, found in parts.items()}


@dataclass(frozen=True, kw_only=True)
class BEYOND(Detector):
    """Neighbourhood relations (He et al., 2022, arXiv:2209.00005, section 3; score of the official code).

    The neighbours of x are ``k`` views by ``augment``. A self-supervised branch gives s_i = cos(r(x), r(x^i)), r =
    ``ssl_projector`` after ``ssl_backbone``, and l_i, how well ``ssl_classifier`` on the backbone agrees with the label
    that the target gives x: "soft" cos(one-hot, logits) or "hard" 0 or 1. Of q_i = alpha l_i + (1 - alpha) s_i the K-th
    largest is the evidence that x is clean. ``mode`` "counts" instead counts neighbours that agree and that are near.
    The cosine depends on an offset of the logits: ``centred`` takes their mean away.

    The branch must not share weights with the target. Parts that are not given are learned from the data: a SmallCNN by
    ``training``, and a linear classifier. Draws follow from the seed and the input (the official code shares one draw
    among the images of a batch). Choose views that keep the label. A batch holds
    ``batch_size`` / 16 inputs and their views. Raises InputError for K outside [1, k], alpha
    outside [0, 1], or only some of the branch's parts; see also Detector.
    """

    ssl_backbone: nn.Module | None = None
    ssl_projector: nn.Module | None = None
    ssl_classifier: nn.Module | None = None
    augment: Augmentation = Augmentation(scale=(0.5, 1.0), flip=False)
    k: int = 50
    alpha: float = 0.8
    K: int = 20
    mode: Literal["order_stat", "counts"] = "order_stat"
    consistency: Literal["soft", "hard"] = "soft"
    centred: bool = False
    training: SimSiam = SimSiam(dim=64, pred_dim=32, epochs=3, batch_size=64, optimizer="adam", lr=2e-3)
    seed: int = 0

    def _check(self) -> None:
        if not 1 <= self.K <= self.k or not 0 <= self.alpha <= 1:
            given = f"k={self.k}, K={self.K}, alpha={self.alpha}"
            raise InputError(f"BEYOND: {given}; expected 1 <= K <= k and alpha in [0, 1]")
        if self.mode not in ("order_stat", "counts"):
            raise unknown("mode of BEYOND", str(self.mode), ("order_stat", "counts"))
        if self.consistency not in ("soft", "hard"):
            raise unknown("consistency of BEYOND", str(self.consistency), ("soft", "hard"))

    def branch(self, data: Data) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Backbone, projector and classifier: those given, or learned from ``data``."""
        given = (self.ssl_backbone, self.ssl_projector, self.ssl_classifier)
        backbone, projector, classifier = given
        if backbone is not None and projector is not None and classifier is not None:
            return backbone, projector, classifier
        if any(part is not None for part in given):
            raise InputError("BEYOND: some parts of the branch are given; expected backbone, projector and classifier")
        channels, height, width = data.shape
        with seeded(self.seed, "backbone"):
            start = SmallCNN((channels, height, width)).body
        encoder = self.training.fit(start, data, seed=self.seed)
        return encoder.backbone, encoder.projector, linear_classifier(encoder.backbone, data, seed=self.seed, epochs=5)

    def learn(self, model: nn.Module, data: Data) -> FittedBEYOND:
        self._check()
        check_logits("BEYOND", model, data.x[:1])
        backbone, projector, classifier = self.branch(data)
        names = ("batch_size", "augment", "k", "alpha", "K", "mode", "consistency", "centred", "seed")
        fitted = FittedBEYOND(
            model=model,
            shape=data.shape,
            bounds=data.bounds,
            backbone_=backbone,
            projector_=projector,
            classifier_=classifier,
            **{name: getattr(self, name) for name in names},
        )
        if self.mode == "counts":
            fitted.similar_ = float(np.quantile(fitted.details(data.x)["sim"].numpy(), QUANTILE))
            fitted.counts_ = fitted.counts(data.x).numpy()
        return fitted


def robust_accuracy_with_rejection(
    correct: Bool[Tensor, " n"], rejected: Bool[Tensor, " n"], adversarial: bool
) -> float:
    """The share of inputs that are handled: attacked ones where they are classified rightly or rejected, clean ones
    where they are classified rightly and not rejected (section 4). InputError for other shapes."""
    if correct.shape != rejected.shape or correct.dim() != 1 or len(correct) == 0:
        shapes = f"{tuple(correct.shape)} and {tuple(rejected.shape)}"
        raise InputError(f"robust_accuracy_with_rejection: shapes {shapes}; expected the same (n,), n >= 1")
    handled = correct.bool() | rejected.bool() if adversarial else correct.bool() & ~rejected.bool()
    return float(handled.double().mean())
