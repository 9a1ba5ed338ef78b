"""The exact part of the paper, and what its pairs of digits show."""

from __future__ import annotations

import pytest
import torch

from assay.data import load_data
from assay.papers import caption_graybox as paper
from assay.runtime.random import seeded
from assay.vision import TinyCaptioner


@pytest.mark.parametrize("seed", range(3))
def test_closed_form_and_path_of_torch_hold_and_refute_the_shams(seed: int) -> None:
    real = paper.exact(seed)
    assert real["slope"] <= 1e-9
    assert real["path"] <= 1e-6
    for sham in paper.PAPER.shams:
        changed = paper.exact(seed, sham)
        assert changed["slope"] > 1e-3
        assert changed["path"] > 1e-3


def test_the_path_passes_through_cooler_rates_and_edges() -> None:
    """The exact part would prove little if no rate ever fell and nothing was ever clipped."""
    attack = paper._attack(None, True, steps=40, **paper.PATH)
    x, target = torch.rand(2, 6, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    encoder = paper.Linear(torch.randn(5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    found = attack.run(encoder, x, target, seed=0)
    assert (found.linf > 0.2 - 1e-9).any()
    assert ((found.x_adv == 0) | (found.x_adv == 1)).any()
    steady = paper._attack(None, True, steps=40, **{**paper.PATH, "plateau": (99, 0.5, 3)})
    assert (steady.run(encoder, x, target, seed=0).x_adv - found.x_adv).abs().max() > 1e-4


def test_pairs_show_what_their_captions_say() -> None:
    data = paper.pairs("digits", "test", 1, 60, 0)
    digits = load_data("digits", "test")
    assert data.shape == (1, 16, 16)
    for x, (first, relation, second, end) in zip(data.x, data.fields["caption"].tolist(), strict=True):
        assert end == len(paper.WORDS) + 1
        beside = paper.WORDS[relation] == "beside"
        halves = (x[:, 4:12, :8], x[:, 4:12, 8:]) if beside else (x[:, :8, 4:12], x[:, 8:, 4:12])
        assert float(sum(h.sum() for h in halves)) == pytest.approx(float(x.sum()))
        for half, digit in zip(halves, (first, second), strict=True):
            assert int(digits.y[(digits.x == half).flatten(1).all(1)][0]) == digit


def test_chosen_images_have_different_captions_and_are_described_right_where_possible() -> None:
    data = paper.pairs("digits", "test", 1, 80, 0)
    with seeded(0, "init"):
        model = TinyCaptioner(paper.WORDS, 3, data.shape, 4)
    said = data.fields["caption"].clone()
    said[::2] = 0  # wrong on every other
    model.caption = lambda x: said  # type: ignore[method-assign, assignment]
    x, share = paper.chosen(model, data, 10)
    rows = [int((data.x == image).flatten(1).all(1).nonzero()[0, 0]) for image in x]
    assert share == 0.5
    assert all(row % 2 for row in rows)
    assert len({tuple(data.fields["caption"][row].tolist()) for row in rows}) == 10


def test_the_sham_leads_each_image_onto_the_target_of_another() -> None:
    reference = torch.eye(4)[:, None]
    rolled = paper._attack("rolled-target", True).goal(reference, True)
    assert rolled.reference.argmax(2)[:, 0].tolist() == [1, 2, 3, 0]
    # image k's target is image k + 1, so that of image k + 1 is k + 2: never its own picture
    held = paper._attack("wrong-sign", False).goal(reference, False)
    assert held.likelihood(torch.eye(4)).tolist() == [0, 0, 0, 0]
    assert type(paper._attack("rolled-target", False)) is type(paper._attack(None, True))
