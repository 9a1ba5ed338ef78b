"""The embedded subjects: small networks trained on the spot by a stated recipe, and then kept in the result store."""

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


def digits_subject(seed: int = 0) -> Subject:
    """A SmallCNN trained for 20 epochs on 1,000 of scikit-learn's 8x8 digits: a few seconds on one core, once."""
    return _embedded("digits", Supervised(epochs=20, batch_size=64, lr=2e-3), seed)


def mnist_subject(seed: int = 0) -> Subject:
    """A SmallCNN trained for 3 epochs on MNIST's 60,000 images: about a minute on two cores, once."""
    return _embedded("mnist", Supervised(epochs=3, batch_size=128, lr=2e-3), seed)


def cifar10_subject(seed: int = 0) -> Subject:
    """A SmallCNN (32, 64, 128) trained for 10 epochs on CIFAR-10's 50,000 images: minutes on two cores, once."""
    return _embedded("cifar10", Supervised(epochs=10, batch_size=128, lr=1e-3), seed, (32, 64, 128), 128)


def _embedded(
    name: str, recipe: Supervised, seed: int, widths: tuple[int, ...] = (16, 32), hidden: int = 64
) -> Subject:
    train, test = load_data(f"{name}:train"), load_data(f"{name}:test")
    with seeded(seed, "init"):
        model: nn.Module = SmallCNN(train.shape, len(train.classes), widths, hidden)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    store, key = Store(), key_of(subject=name, data=train.hash, seed=seed, code=code_hash(__name__), threads=threads)
    kept = store.get(key)
    if kept is None:
        model = recipe.fit(model, train, seed=seed)
        store.put(key, {k: v.numpy() for k, v in model.state_dict().items()})
    else:
        model.load_state_dict({k: torch.from_numpy(v) for k, v in kept.items()})
        model.eval()
    return Subject(model, test, train, recipe=recipe, name=name)
