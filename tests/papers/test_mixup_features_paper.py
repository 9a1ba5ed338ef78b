"""What is special to the paper on Mixup and features: its exact checks over seeds, and what each sham takes away."""

import torch

from assay.dynamics import FeatureNoiseModel, QuadraticCNN
from assay.labels import Mixup
from assay.papers.mixup_features import PAPER, RULES, exact, fixed_labels
from assay.training import State


def test_exact_checks_hold_on_other_seeds_and_refute_the_shams() -> None:
    for seed in range(3):
        found = exact(Mixup, seed)
        assert found["ones"] == 0
        assert found["shifts"] < 1e-12
        assert all(exact(RULES[sham], seed)["shifts"] > 1e-4 for sham in PAPER.shams)


def test_shams_keep_labels_or_inputs_as_they_are() -> None:
    data = FeatureNoiseModel(d=8, rho=0.3, sigma_p=0.2).sample(30, seed=0)
    batch, state = data.batch(torch.arange(30)), State(0, data, 9)
    first, second = RULES["same-class-mix"]().partners(batch, state)
    assert torch.equal(first, torch.arange(30))
    assert torch.equal(second.sort().values, torch.arange(30))
    assert torch.equal(batch.y[second], batch.y)
    assert (second != first).float().mean() > 0.5
    pairs = RULES["same-class-mix"](pairs="all").partners(batch, state)
    assert len(pairs[0]) == sum(int((data.y == k).sum()) ** 2 for k in (0, 1))
    # the labels of all partners in turn, at the inputs as they are
    net, found = QuadraticCNN(8, 3, 0.5), RULES["labels-only"](fixed_lambda=0.6)
    soft = torch.nn.functional.one_hot(batch.y, 2).float()
    each = [torch.nn.functional.cross_entropy(net(batch.x), 0.6 * soft + 0.4 * soft.roll(k, 0)) for k in range(30)]
    assert torch.allclose(found.objective(net, batch, state), torch.stack(each).mean(), atol=1e-6)


def test_fixed_labels_keep_the_larger_share() -> None:
    assert [fixed_labels(s) for s in (0.0, 0.4, 0.5, 0.9)] == [0.25, 0.25, 0.75, 0.75]
