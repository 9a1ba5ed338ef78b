"""The exact parts of corrective-unlearning on other seeds, and what its shams keep and lose."""

import pytest
import torch

from assay.papers import corrective_unlearning as paper
from assay.unlearn import SelectiveSynapticDampening
from assay.unlearn.corrective import known_score, true_labels


@pytest.mark.parametrize("seed", range(2))
def test_exact_parts_hold_on_other_seeds(seed: int) -> None:
    assert max(paper._identities(seed).values()) <= 1e-7
    assert paper._by_hand(None) == 0
    assert paper._by_hand("inverted-ratio") > 0.5


def test_the_inverted_ratio_chooses_the_same_weights() -> None:
    g = torch.Generator().manual_seed(0)
    lost, whole = torch.rand(500, generator=g), torch.rand(500, generator=g)
    real, wrong = (c(alpha=0.7, lam=0.3).shrink(lost, whole) for c in (SelectiveSynapticDampening, paper._Inverted))
    chosen = lost > 0.7 * whole
    assert (real[~chosen] == 1).all()
    assert (wrong[~chosen] == 1).all()
    assert (wrong <= 1).all()
    ratio = (lost / whole)[chosen]
    most = ratio > ratio.median()
    assert real[chosen][most].mean() < real[chosen][~most].mean()
    assert wrong[chosen][most].mean() > wrong[chosen][~most].mean()


def test_the_choice_never_sees_what_is_affected() -> None:
    scale = paper.PAPER.scale("smoke")
    clean, bench = paper._subject(scale, 0), paper._bench(scale)
    spoiled, found = bench.spoil(clean, seed=0)
    forget, _ = found.flagged(0.5, seed=0)
    labels = true_labels(clean.training("the test"), forget)
    assert (labels != 0).any()
    assert (forget.y == 0).all()
    score = known_score(spoiled.model, spoiled, forget, labels)
    assert score == known_score(
        spoiled.model, spoiled.with_model(spoiled.model, test=found.affected(clean.test)), forget, labels
    )
    assert spoiled.holdout is clean.holdout
    assert torch.equal(spoiled.test.x, clean.test.x)
