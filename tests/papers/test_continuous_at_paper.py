"""What is special to the paper on continuous attacks: its language, and that its shams do what they say."""

from __future__ import annotations

import pytest
import torch

from assay.papers import continuous_at as paper

pytest.importorskip("transformers")


def test_replies_are_the_objects_in_the_verbs_order() -> None:
    found = paper.said((5, 9), [(10, 11, 12)])
    assert found.ids.tolist() == [
        [5, 10, 11, 12, paper.SEP, *[paper.FILLER] * paper.SUFFIX, 12, 11, 10],
        [9, 10, 11, 12, paper.SEP, *[paper.FILLER] * paper.SUFFIX, 10, 12, 11],
    ]
    refused = paper.said((9,), [(10, 11, 12)], refuse=True)
    assert refused.ids[0, -3:].tolist() == [paper.REFUSAL] * 3
    assert len(set(paper.ORDERS.values())) == 6


def test_shams_change_the_step_and_what_is_added() -> None:
    scale, net = paper.PAPER.scale("smoke"), paper.network(16, 1, seed=0)
    batch = paper.said(paper.HARMFUL, [(10, 11, 12), (13, 14, 15)])
    plain, up = (paper.exact(net, batch, sham) for sham in (None, "ascent"))
    assert plain["change"] < 0 < up["change"]
    assert plain["first"] < 1e-6 < up["first"]
    assert max(plain["excess"], up["excess"]) < 1e-6
    assert plain["outside"] == up["outside"] == 0
    attack = paper.attacker(scale, None)
    assert attack.attack(net, batch).any()
    zero = paper._ZeroDelta(attack=attack).delta(net, batch)
    assert not zero.any()
    assert zero.shape == torch.Size((6, 15, 16))
