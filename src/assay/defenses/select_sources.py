"""Which public models to train against: one of each kind of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import nn

from assay.attacks import PGD, Linf
from assay.attacks.base import Attack
from assay.data import Data
from assay.defenses.adv_store import generate
from assay.runtime.errors import InputError, unknown
from assay.runtime.inference import predict
from assay.runtime.random import numpy_rng


def select_sources(
    public: Mapping[str, nn.Module],
    groups: Mapping[str, str],
    data: Data,
    *,
    seed: int,
    strategy: Literal["transfer", "random"] = "transfer",
    attack: Attack = PGD(ball=Linf(8 / 255), steps=10, step_size=1 / 4, early_stop=False),
) -> list[str]:
    """One model of each group (normal, adversarial, corruption ...), in the order in which groups first appear.

    One a kind of training is the heuristic of Sitawarin et al. (2023, arXiv:2310.17645), who find that the
    choice within a kind matters little. Within one, "transfer" takes the model whose examples, by ``attack`` on
    ``data``, the *other* public models get wrong most often on average; "random" draws. ``groups`` names the group of
    each model. InputError where they do not match, or for fewer than two models with "transfer".
    """
    if strategy not in ("transfer", "random"):
        raise unknown("strategy", str(strategy), ("transfer", "random"))
    if not public or set(groups) != set(public):
        odd = sorted(set(groups) ^ set(public)) or "no models"
        raise InputError(f"select_sources: groups and models differ by {odd}; expected one group for each model")
    kinds = {kind: [n for n in public if groups[n] == kind] for kind in dict.fromkeys(groups[n] for n in public)}
    if strategy == "random":
        rng = numpy_rng(seed, "sources")
        return [names[rng.integers(len(names))] for names in kinds.values()]
    if len(public) < 2:
        raise InputError("select_sources: one model; expected at least two where transfer decides")
    error = transfer_error(public, attack, data, seed=seed)
    return [max(names, key=lambda n: error[n]) for names in kinds.values()]


def transfer_error(public: Mapping[str, nn.Module], attack: Attack, data: Data, *, seed: int) -> dict[str, float]:
    """For each model the mean error rate of the others on its examples."""
    store = generate(public, {"attack": attack}, data, seed=seed)
    rates: dict[str, float] = {}
    for p, (name, _) in enumerate(store.pairs):
        x = store.take(p, 0, slice(None))
        others = [m for n, m in public.items() if n != name]
        rates[name] = float(np.mean([(predict(m, x).argmax(1) != data.y).double().mean() for m in others]))
    return rates
