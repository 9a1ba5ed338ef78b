"""Transfer attacks from public models (TAPM): the threat model, and how alike its attacks are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from assay.attacks.base import Attack
from assay.data import Data
from assay.defenses.adv_store import AdvStore, Pair, generate
from assay.runtime.errors import InputError
from assay.runtime.inference import predict

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TAPMResult:
    """Which of n samples a model gets right under each of p pairs (source, attack), ``correct`` (p, n), and untouched,
    ``clean`` (n,). ``seen_sources`` and ``seen_attacks`` are those that training knew.

    Every accuracy takes ``seen_source`` and ``seen_attack``: True or False for the pairs that are so, None for all.
    """

    pairs: tuple[Pair, ...]
    correct: Bool[Tensor, "p n"]
    clean: Bool[Tensor, " n"]
    seen_sources: Collection[str] = ()
    seen_attacks: Collection[str] = ()

    def _pick(self, seen_source: bool | None, seen_attack: bool | None) -> Bool[Tensor, "k n"]:
        rows = [
            p
            for p, (source, attack) in enumerate(self.pairs)
            if seen_source in (None, source in self.seen_sources) and seen_attack in (None, attack in self.seen_attacks)
        ]
        if not rows:
            asked = f"seen_source={seen_source}, seen_attack={seen_attack}"
            raise InputError(f"TAPMResult: no pair with {asked}; expected at least one")
        return self.correct[rows]

    def worst_pair(self, *, seen_source: bool | None = None, seen_attack: bool | None = None) -> float:
        """The lowest accuracy under one pair: the attacker chooses it once for all samples. The paper's figure."""
        return float(self._pick(seen_source, seen_attack).double().mean(1).min())

    def worst_sample(self, *, seen_source: bool | None = None, seen_attack: bool | None = None) -> float:
        """The share of samples that are right under every pair: the attacker chooses for each sample."""
        return float(self._pick(seen_source, seen_attack).all(0).double().mean())

    def mean(self, *, seen_source: bool | None = None, seen_attack: bool | None = None) -> float:
        """The mean accuracy over pairs."""
        return float(self._pick(seen_source, seen_attack).double().mean())

    @property
    def clean_accuracy(self) -> float:
        """The accuracy on the samples as they are."""
        return float(self.clean.double().mean())

    def rows(self) -> list[dict[str, Any]]:
        """One row a pair: source, attack, whether training knew them, and the accuracy."""
        accuracy = self.correct.double().mean(1).tolist()
        return [
            {
                "source": source,
                "attack": attack,
                "seen_source": source in self.seen_sources,
                "seen_attack": attack in self.seen_attacks,
                "acc": acc,
            }
            for (source, attack), acc in zip(self.pairs, accuracy, strict=True)
        ]

    def to_frame(self) -> pd.DataFrame:
        """The rows as a table (needs pandas)."""
        import pandas as pd

        return pd.DataFrame(self.rows())


@dataclass(frozen=True, kw_only=True)
class TAPMEvaluation:
    """Accuracy under transfer attacks from public models (Sitawarin et al., 2023, arXiv:2310.17645).

    The attacker knows the ``public`` models and picks one with one of the ``attacks``; of the model under evaluation it
    has neither weights nor answers, so no gradient of it is taken. ``evaluation(model, data, seed=0)`` attacks every
    public model on all of ``data`` (also where the source itself is wrong, as the official code does) and gives a
    ``TAPMResult``. The examples do not depend on the model: ``evaluation.store(data, seed=0)`` makes them once for many
    models. ``seen_sources`` and ``seen_attacks`` name those that training knew. InputError for names that are neither.
    """

    kind: ClassVar[str] = "function"

    public: Mapping[str, nn.Module]
    attacks: Mapping[str, Attack]
    seen_sources: Collection[str] = field(default_factory=tuple)
    seen_attacks: Collection[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.public or not self.attacks:
            found = f"{len(self.public)} models, {len(self.attacks)} attacks"
            raise InputError(f"TAPMEvaluation: {found}; expected at least one of each")
        for name, known in (("seen_sources", self.public), ("seen_attacks", self.attacks)):
            odd = sorted(set(getattr(self, name)) - set(known))
            if odd:
                raise InputError(f"TAPMEvaluation: {name} has {odd}; expected some of {sorted(known)}")

    def store(self, data: Data, *, seed: int) -> AdvStore:
        """The examples of every pair on ``data``, as they are (not rounded)."""
        return generate(self.public, self.attacks, data, seed=seed, dtype=torch.float32)

    def __call__(self, model: nn.Module, data: Data, *, seed: int, store: AdvStore | None = None) -> TAPMResult:
        """How ``model`` does under every pair. ``store``: examples on ``data`` made before."""
        store = self.store(data, seed=seed) if store is None else store
        store.check(data)
        right = [predict(model, store.take(p, 0, slice(None))).argmax(1) == data.y for p in range(len(store.pairs))]
        clean = predict(model, data.x).argmax(1) == data.y
        return TAPMResult(store.pairs, torch.stack(right), clean, self.seen_sources, self.seen_attacks)


@dataclass(frozen=True)
class Similarity:
    """Of p attacks: the mean ``cosine`` (p, p) of their perturbations of a sample, and the mean ``shares`` (p,) of the
    energy of a sample's unit perturbations along their principal directions, falling and summing to 1.
    """

    cosine: Float[Tensor, "p p"]
    shares: Float[Tensor, " p"]


def perturbation_similarity(store: AdvStore, data: Data) -> Similarity:
    """How alike the perturbations of all pairs are: the explanation that Sitawarin et al. (2023, arXiv:2310.17645,
    as measured by their official code) give for why training on few attacks holds for others.

    Directions are those of the perturbations themselves, not centred. A perturbation of 0 has the cosine 0 with any.
    """
    store.check(data)
    moved = torch.stack([(store.take(p, 0, slice(None)) - data.x).flatten(1) for p in range(len(store.pairs))], 1)
    units = moved.double() / moved.double().norm(dim=2, keepdim=True).clamp_min(1e-12)
    gram = units @ units.mT
    energy = torch.linalg.eigvalsh(gram).flip(1).clamp_min(0)
    return Similarity(gram.mean(0), (energy / energy.sum(1, keepdim=True).clamp_min(1e-12)).mean(0))
