"""What is special to the paper on decoupled mixup: its exact checks over seeds, and the shams that they refute."""

import torch

from assay.labels import DecoupledMixup
from assay.losses import DecoupledMixupLoss
from assay.papers.decoupled_mixup import PAPER, RULES, _Under, exact


def test_exact_checks_hold_on_other_seeds_and_refute_the_shams() -> None:
    for seed in range(3):
        found = exact(DecoupledMixupLoss, seed)
        assert found["reach"] == 0
        assert max(found["hand"], found["soft"]) < 1e-12
        assert found["loops"] < 1e-9
        assert all(exact(RULES[sham], seed)["loops"] > 1e-2 for sham in PAPER.shams)
        assert exact(RULES["kept-competitor"], seed)["reach"] > 0.1
        assert all(exact(rule, seed)["soft"] < 1e-12 for rule in RULES.values())


def test_the_method_under_its_own_rule_is_the_public_trainer() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    a, b = torch.arange(6) % 4, (torch.arange(6) + 1) % 4
    found = [method.loss()(logits, a, b, 0.3) for method in (_Under(eta=0.5), DecoupledMixup(eta=0.5))]
    assert torch.equal(*found)
