"""Early learning and memorisation: a linear model's course, and shares of predictions while a network trains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from assay.data import Data
from assay.dynamics import MemorizationTracker, early_learning_curve
from assay.labels import ELRPlus
from assay.nets import MLP
from assay.runtime.errors import InputError
from assay.runtime.random import seeded
from assay.training import Supervised


def test_true_classes_come_first_and_wrong_labels_last() -> None:
    found = early_learning_curve(200, 100, 0.2, 0.1, 3000, lr=20.0, seed=0)
    assert found.true[0] == 1
    assert found.clean[0] == 1
    assert found.true[-1] == 0
    assert found.clean[-1] == 1
    assert found.cosine[0] > 0.8 > found.cosine[-1] + 0.2


def test_without_noise_all_weights_lie_along_the_signal() -> None:
    found = early_learning_curve(5, 40, 0.3, 0.0, 3, seed=1)
    assert np.allclose(found.cosine, 1)
    assert (found.clean == 1).all()
    assert (found.true == 1).all()
    assert np.isnan(early_learning_curve(5, 40, 0.0, 0.5, 3, seed=1).true).all()


@pytest.mark.parametrize("bad", [{"p": 0}, {"delta": 0.5}, {"sigma": -1.0}, {"steps": 0}, {"lr": 0.0}])
def test_bad_curves(bad: dict) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        early_learning_curve(**({"p": 3, "n": 4, "delta": 0.1, "sigma": 1.0, "steps": 2, "seed": 0} | bad))


def _data() -> tuple[Data, torch.Tensor]:
    truth = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 1, 2])  # the last three are wrong
    return Data(torch.eye(8, 8), labels, tuple("abc")), truth


def test_shares_by_hand() -> None:
    data, truth = _data()
    guess = torch.tensor([0, 1, 2, 1, 1, 2, 1, 0])  # one clean label missed; then true, memorised, other

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(guess[x.argmax(1)], 3).float()

    tracker = MemorizationTracker(data, truth)
    found = tracker.update(Fixed(), step=4)
    third = pytest.approx(1 / 3)
    assert found == {"step": 4, "clean": pytest.approx(0.8), "true": third, "memorised": third, "other": third}
    assert math.isnan(MemorizationTracker(data, data.y).update(Fixed())["memorised"])


@pytest.mark.parametrize("method", [Supervised, ELRPlus])
def test_as_a_hook_it_leaves_training_as_it_is(method: type) -> None:
    data, truth = _data()
    with seeded(0, "net"):
        net = MLP((8,), 3, (6,))
    tracker = MemorizationTracker(data, truth, every=3)
    trainer = method(epochs=4, batch_size=4, optimizer="adam")
    watched, plain = trainer.fit(net, data, seed=0, hooks=[tracker]), trainer.fit(net, data, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    assert [row["step"] for row in tracker.history] == [3, 6, 8]
    assert tracker.history[-1] == tracker.update(watched, step=8)


def test_bad_trackers() -> None:
    data, truth = _data()
    for make in (
        lambda: MemorizationTracker(data, truth + 1),
        lambda: MemorizationTracker(data, truth[:4]),
        lambda: MemorizationTracker(data, truth, every=0),
        lambda: MemorizationTracker(data, truth).update(),
    ):
        with pytest.raises(InputError, match="expected"):
            make()
