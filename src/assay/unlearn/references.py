"""Models trained by the subject's own recipe, kept in the result store: each is trained once."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from assay.data import Data
from assay.runtime.codehash import code_hash, source_path
from assay.runtime.spec import spec_of
from assay.runtime.store import Store, key_of
from assay.subject import Subject, fresh
from assay.subject.code import running_code
from assay.subject.subject import model_hash
from assay.training import Trainer
from assay.unlearn.base import recipe_of


@dataclass(frozen=True)
class Reference:
    """A trained model, and the seconds that training took when it was done."""

    model: nn.Module
    seconds: float


def trained(subject: Subject, data: Data, *, seed: int, store: Store | None = None) -> Reference:
    """New weights trained by the subject's recipe on ``data``: with what is retained, what Retrain gives.

    Taken from ``store`` where a run with the same start, recipe, data, seed and code has left it there, else left
    there; a recipe that cannot be described (another package's class) is trained every time. Raises AccessError where
    the subject has no recipe.
    """
    recipe, start = recipe_of(subject, "retraining"), fresh(subject.model, seed=seed)
    key = _key(recipe, start, data, seed) if store is not None else None
    kept = store.get(key) if store is not None and key is not None else None
    if kept is not None:
        seconds = float(kept.pop("seconds"))
        start.load_state_dict({k.removeprefix("w/"): torch.from_numpy(v) for k, v in kept.items()})
        return Reference(start.eval(), seconds)
    begun = time.perf_counter()
    model = recipe.fit(start, data, seed=seed)
    seconds = time.perf_counter() - begun
    if store is not None and key is not None:
        weights = {f"w/{k}": v.detach().cpu().numpy() for k, v in model.state_dict().items()}
        store.put(key, {**weights, "seconds": np.array(seconds)})
    return Reference(model, seconds)


def _key(recipe: Trainer, start: nn.Module, data: Data, seed: int) -> str | None:
    spec, module = spec_of(recipe), type(recipe).__module__
    if spec is None or source_path(module) is None:
        return None
    code = [code_hash(__name__), code_hash(module)]
    given = {"start": [model_hash(start), running_code(start)], "recipe": spec.to_dict(), "data": data.hash}
    return key_of(kind="trained", **given, seed=seed, code=code)
