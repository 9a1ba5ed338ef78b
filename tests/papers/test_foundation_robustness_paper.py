"""What is special to the paper on foundation-model-oriented robustness: its augmentation and its shams."""

from __future__ import annotations

import torch

from assay.data import load_data
from assay.nets import MLP
from assay.papers import foundation_robustness as paper
from assay.papers.foundation_robustness import _RandomSteps
from assay.runtime.random import Draws
from assay.vision import Ensemble, LatentPerturber, PCAAutoencoder


def test_distortions_follow_from_the_draws_and_stay_in_bounds() -> None:
    x = load_data("digits:test").x[:20]
    first, again = (paper.distorted(x, Draws(1, "d", torch.arange(20))) for _ in range(2))
    assert first.equal(again)
    assert first.shape == x.shape
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    assert float((first - x).abs().mean()) > 0.02


def test_random_steps_are_as_long_as_those_of_the_gradient() -> None:
    data, oracle = load_data("digits:test")[:6], Ensemble([MLP()])
    pca, model = PCAAutoencoder.fit(data, 4), MLP()
    ends = []
    for kind in (LatentPerturber, _RandomSteps):
        method = kind(oracle=oracle, steps=1, step_size=0.01, stop=False)
        image, taken = method.perturb(pca, model, data.x, data.y, Draws(0, "s", data.index))
        assert taken.tolist() == [1] * 6
        inside = pca.components @ (image - data.x).flatten(1).T
        ends.append(inside)
    assert not ends[0].allclose(ends[1])
