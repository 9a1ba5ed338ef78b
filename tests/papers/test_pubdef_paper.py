"""What the sham of PubDef keeps and what it takes away."""

from __future__ import annotations

from assay.attacks import PGD, Linf
from assay.data import load_data
from assay.defenses import generate
from assay.nets import MLP
from assay.papers import pubdef as paper
from assay.runtime.random import seeded


def test_random_signs_are_as_many_and_as_large_but_follow_no_gradient() -> None:
    data = load_data("digits:train")[:60]
    with seeded(0, "source"):
        source = MLP()
    attack = PGD(ball=Linf(0.1), steps=3, early_stop=False)
    real = generate({"source": source}, {"pgd": attack}, data, seed=0, copies=2)
    sham = paper._signs(real, data, 0.1, 0)
    assert sham.pairs == real.pairs
    assert sham.kept.shape == real.kept.shape
    moved = sham.take(0, 0, slice(None)) - data.x
    assert 0.1 - 1 / 255 < float(moved.abs().max()) <= 0.1 + 1 / 510 + 1e-6
    inside = (data.x > 0.11) & (data.x < 0.89)
    signs = moved[inside].sign()
    assert abs(float(signs.mean())) < 0.1
    along = (real.take(0, 0, slice(None)) - data.x)[inside].sign()
    assert abs(float((signs * along).mean())) < 0.1


def test_losses_by_hand_on_other_seeds() -> None:
    assert max(paper.by_hand(seed) for seed in range(3)) <= 1e-6


def test_the_known_networks_are_one_of_each_kind() -> None:
    assert sorted(paper.GROUPS[name] for name in paper.KNOWN) == sorted(set(paper.GROUPS.values()))
