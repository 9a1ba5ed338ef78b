"""The shams of modhifi: the same scores elsewhere, and the one logit that must not be compensated."""

from __future__ import annotations

import torch

from assay.compress import ModHiFiP, channel_spaces
from assay.compress.channel_pruning import Calibration
from assay.compress.subset_fidelity import SubsetFidelity
from assay.data import load_data
from assay.nets import MLP
from assay.papers.modhifi import _CompensateAll, _net, _Shuffled
from assay.runtime.random import seeded
from assay.subject import Subject
from assay.training import Supervised
from assay.unlearn import ModHiFiU, forget_set


def test_shuffled_fidelity_has_the_same_scores_at_other_channels() -> None:
    with seeded(0, "net"):
        net, x = _net(1, 8, (6, 8), 16).eval(), torch.rand(30, 1, 8, 8)
    spaces = channel_spaces(net, x[:1])
    per = {n: size for s in spaces for n, size in s.consumers.items()}
    given = Calibration(x, None, SubsetFidelity(layer_names=tuple(per), blocks=per).fit(net, x), 5)
    for method in ("naive", "raw", "greedy"):
        for space in spaces:
            real, moved = (c(method=method).scores(net, space, given) for c in (ModHiFiP, _Shuffled))
            assert torch.equal(real.sort().values, moved.sort().values)
            assert not torch.equal(real, moved)


def test_compensate_all_differs_in_the_forgotten_logit_alone() -> None:
    train, recipe = load_data("digits:train"), Supervised(epochs=15)
    with seeded(0, "test"):
        model = MLP(hidden=(32,))
    subject = Subject(recipe.fit(model, train, seed=0), load_data("digits:test"), train, recipe=recipe)
    parts = forget_set(train, "class=3")
    a, b = (c(rule="gap", compensate=True).forget(subject, *parts, seed=0).head for c in (ModHiFiU, _CompensateAll))
    changed = (a.weight != b.weight).any(1)
    assert changed.nonzero()[:, 0].tolist() == [3]
    assert torch.equal(a.bias, b.bias)
