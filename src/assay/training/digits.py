"""The embedded subject: a small CNN on scikit-learn's bundled digits, trained on the spot and then kept."""

from __future__ import annotations

import torch
from torch import nn

from assay.data import load_data
from assay.nets import SmallCNN
from assay.runtime.codehash import code_hash
from assay.runtime.random import seeded
from assay.runtime.store import Store, key_of
from assay.subject import Subject
from assay.training.trainer import Supervised

RECIPE = Supervised(epochs=20, batch_size=64, lr=2e-3)


def digits_subject(seed: int = 0) -> Subject:
    """A SmallCNN trained for 20 epochs on 1,000 digits: a few seconds on one core, once."""
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(seed, "init"):
        model: nn.Module = SmallCNN(train.shape, len(train.classes))  # type: ignore[arg-type]
    store, key = Store(), key_of(subject="digits", seed=seed, code=code_hash(__name__), threads=torch.get_num_threads())
    kept = store.get(key)
    if kept is None:
        model = RECIPE.fit(model, train, seed=seed)
        store.put(key, {k: v.numpy() for k, v in model.state_dict().items()})
    else:
        model.load_state_dict({k: torch.from_numpy(v) for k, v in kept.items()})
        model.eval()
    return Subject(model, test, train, recipe=RECIPE, name="digits")
