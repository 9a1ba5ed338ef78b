"""What is special about neural-bandits: its exact checks tell the method from each sham, and only from that."""

import pytest
import torch

from assay.papers import neural_bandits as paper


@pytest.mark.parametrize("seed", [1, 2])
def test_the_pull_is_lost_only_when_predictions_are_averaged(seed: int) -> None:
    for sham in (None, "cost-as-reward"):
        errors = paper.pull_errors(seed, 100_000, sham)
        assert errors["enumerated"] <= 1e-9
        assert errors["drawn"] <= 3e-2
    lost = paper.pull_errors(seed, 100_000, "average-then-loss")
    assert lost["enumerated"] == pytest.approx(1 - 1 / paper.COPIES)
    assert lost["drawn"] == pytest.approx(1 - 1 / paper.COPIES, abs=0.02)


@pytest.mark.parametrize("seed", [1, 2])
def test_inequalities_fall_only_when_costs_are_rewards(seed: int) -> None:
    for sham, holds in ((None, True), ("average-then-loss", True), ("cost-as-reward", False)):
        rows = paper.slack(seed, 500, sham)
        for name in ("gap", "square", "fast"):
            assert (max(row[name] for row in rows) <= 1e-9) == holds


def test_regressor_without_perturbation_is_sgd() -> None:
    for seed in range(20):
        assert paper.sgd_difference(seed) <= 1e-12


def test_contexts_have_unit_norm_and_every_learner_has_settings() -> None:
    for name in ("digits", "breast"):
        x, y = paper._contexts(name)
        torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
        assert len(y) == len(x)
    for settings in paper.TUNED.values():
        assert set(settings) == {*paper.OURS, *paper.RIVALS}
        assert all(settings[arm].c_p > 0 for arm in paper.OURS)
        assert all(settings[arm].c_p == 0 for arm in paper.RIVALS)
