"""The embedded subject: a small CNN on scikit-learn's bundled digits, trained on the spot."""

from __future__ import annotations

from assay.data import load_data
from assay.nets import SmallCNN
from assay.runtime.random import seeded
from assay.subject.subject import Subject
from assay.training.trainer import Supervised

RECIPE = Supervised(epochs=20, batch_size=64, lr=2e-3)


def digits_subject(seed: int = 0) -> Subject:
    """A SmallCNN trained for 20 epochs on 1,000 digits; a few seconds on one core."""
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(seed, "init"):
        model = SmallCNN(train.shape, len(train.classes))  # type: ignore[arg-type]
    return Subject(RECIPE.fit(model, train, seed=seed), test, train, recipe=RECIPE, name="digits")
