"""A model that says how legible a perturbed word is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Batch, Data
from assay.language.encoders import ByteEncoder, CellEncoder, LegibilityNet, as_bytes, trocr_encoder, width_of
from assay.language.legibility_loss import CHOICES, LegibilityLoss
from assay.language.legibility_metrics import legibility_metrics
from assay.language.word_renderer import GAP, WordRenderer
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import batched, device_of, evaluating
from assay.runtime.random import seeded
from assay.training import Plan, State, fit

BACKBONES = ("tiny", "bytes", "trocr")


class LegibilityPair(NamedTuple):
    """Two perturbations of ``original`` and a reader's ``choice``: 0 or 1 that one, 2 both alike, 3 neither."""

    original: str
    first: str
    second: str
    choice: int


@dataclass(frozen=True, kw_only=True)
class LegibilityModel:
    """Scores learned from pairs of words under LegibilityLoss with AdamW (Seth et al., 2023, arXiv:2303.05077).

    ``backbone``: "trocr", the encoder of TrOCR-base-handwritten (extra ``hf`` and network), or a module of pictures
    (n, 3, ``side``, ``side``) in [-1, 1], both of which see the released picture (WordRenderer.render, stretched); or
    one of two small networks that are not from the paper, for words of at most ``length`` characters: "tiny" sees each
    in a square of ``cell`` pixels, "bytes" stands for the paper's text models and sees no picture. ``lr`` None is the
    paper's 1e-5, and 2e-3 for the small ones; the batch is that of the released run, two steps of 26. ``renderer``
    chooses the font. With pairs to validate on, the weights of the epoch of highest F1 stay.
    """

    kind: ClassVar[str] = "function"

    backbone: Literal["tiny", "bytes", "trocr"] | nn.Module = "tiny"
    renderer: WordRenderer = WordRenderer()
    epochs: int = 5
    batch_size: int = 52
    lr: float | None = None
    side: int = 384
    cell: int = 12
    length: int = 12

    def __post_init__(self) -> None:
        if not isinstance(self.backbone, nn.Module) and self.backbone not in BACKBONES:
            raise unknown("backbone of LegibilityModel", str(self.backbone), BACKBONES)
        if min(self.side, self.cell, self.length) < 1:
            raise InputError(
                f"LegibilityModel: side={self.side}, cell={self.cell}, length={self.length}; expected at least 1 each"
            )

    def pictures(self, words: Sequence[str], originals: Sequence[str]) -> Float[Tensor, "n c h w"]:
        """What the backbone sees of each word beside its original, in [0, 1]."""
        if len(words) != len(originals) or not words:
            raise InputError(
                f"LegibilityModel: {len(words)} words and {len(originals)} originals; expected as many, at least one"
            )
        if self.backbone == "tiny":
            drawn = WordRenderer(font=self.renderer.font, size=self.cell)
            return torch.stack([drawn.cells(part, self.length) for part in (words, originals)], 1)
        if self.backbone == "bytes":
            return as_bytes([w + GAP + o for w, o in zip(words, originals, strict=True)], 8 * self.length + len(GAP))
        shown = (self.renderer.render(w, o)[None] for w, o in zip(words, originals, strict=True))
        size = (self.side, self.side)
        return torch.cat([F.interpolate(p, size, mode="bilinear", antialias=True).clamp(0, 1) for p in shown])

    def data(self, pairs: Sequence[LegibilityPair]) -> Data:
        """Pairs as a data set: pictures (n, 2, c, h, w) and choices."""
        if not pairs or not all(p.choice in range(len(CHOICES)) for p in pairs):
            raise InputError(
                f"LegibilityModel: {len(pairs)} pairs, choices outside 0..3 or none; expected some in 0..3"
            )
        originals = [p.original for p in pairs]
        both = [self.pictures(words, originals) for words in ([p.first for p in pairs], [p.second for p in pairs])]
        return Data(torch.stack(both, 1), torch.tensor([p.choice for p in pairs]), CHOICES, name="legibility pairs")

    def loss(self) -> nn.Module:
        """The objective of two scores and a choice."""
        return LegibilityLoss()

    def net(self, *, seed: int) -> LegibilityNet:
        """The untrained network."""
        with seeded(seed, "legibility"):
            if self.backbone in ("tiny", "bytes"):
                small = CellEncoder(self.cell) if self.backbone == "tiny" else ByteEncoder()
                return LegibilityNet(small, small.width)
            encoder = trocr_encoder() if isinstance(self.backbone, str) else copy.deepcopy(self.backbone)
            return LegibilityNet(encoder, width_of(encoder, self.pictures(["a"], ["a"])), centred=True)

    def fit(
        self, pairs: Sequence[LegibilityPair], *, seed: int, valid: Sequence[LegibilityPair] | None = None
    ) -> FittedLegibility:
        """A model trained on ``pairs``. Raises InputError for no pairs and choices outside 0..3."""
        return self.fit_data(self.data(pairs), seed=seed, valid=self.data(valid) if valid is not None else None)

    def fit_data(self, data: Data, *, seed: int, valid: Data | None = None) -> FittedLegibility:
        """As ``fit``, on pictures (n, 2, c, h, w) with choices."""
        rate = self.lr if self.lr is not None else (2e-3 if self.backbone in ("tiny", "bytes") else 1e-5)
        plan = Plan(epochs=self.epochs, batch_size=self.batch_size, optimizer="adamw", lr=rate, schedule="constant")
        loss, best = self.loss(), _Best(valid, plan.total(len(data)) // max(self.epochs, 1))

        def objective(model: nn.Module, batch: Batch, state: State) -> Tensor:
            s0, s1 = model(batch.x.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
            return loss(s0, s1, batch.y)

        hooks = [best] if valid is not None else []
        trained = fit(self.net(seed=seed), data, objective, plan, seed=seed, hooks=hooks)
        if best.state is not None:
            trained.load_state_dict(best.state)
        return FittedLegibility(self, trained)


class _Best:
    """A hook that keeps the weights of the epoch of highest F1 on validation pairs."""

    def __init__(self, valid: Data | None, every: int) -> None:
        self.valid, self.every, self.f1 = valid, every, -1.0
        self.state: dict[str, Tensor] | None = None

    def __call__(self, models: Mapping[str, nn.Module], state: State) -> None:
        if self.valid is None or state.step % self.every:
            return
        model = models["model"]
        f1 = legibility_metrics(*pair_scores(model, self.valid), self.valid.y)["f1"]
        if f1 > self.f1:
            self.f1, self.state = f1, copy.deepcopy(model.state_dict())


def pair_scores(model: nn.Module, data: Data) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Scores of the first and of the second word of every pair of pictures."""
    with evaluating(model):
        first, second = (batched(model, data.x[:, i], device=device_of(model)).float() for i in (0, 1))
    return first, second


@dataclass(frozen=True, eq=False)
class FittedLegibility:
    """A trained LegibilityModel: ``model_`` maps pictures to scores, legible where > 0."""

    method: LegibilityModel
    model_: nn.Module

    def score(self, words: Sequence[str], originals: Sequence[str]) -> Float[Tensor, " n"]:
        """The logit that each word can be read as its original."""
        with evaluating(self.model_):
            shown = self.method.pictures(words, originals)
            return batched(self.model_, shown, device=device_of(self.model_)).float()

    def rank(self, words: Sequence[str], original: str) -> list[str]:
        """Perturbations of one word, the most legible first."""
        scores = self.score(words, [original] * len(words))
        return [words[i] for i in scores.argsort(descending=True, stable=True).tolist()]

    def evaluate(self, pairs: Sequence[LegibilityPair]) -> dict[str, float]:
        """legibility_metrics of the scores of ``pairs``."""
        data = self.method.data(pairs)
        return legibility_metrics(*pair_scores(self.model_, data), data.y)
