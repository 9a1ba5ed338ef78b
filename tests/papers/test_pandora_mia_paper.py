"""What is special to the paper on fine-tuned loss ratios: its segments, its sham, and its identities."""

from __future__ import annotations

import pytest
import torch

from assay.papers import pandora_mia as paper
from assay.privacy import FLoRaMIA, LossMIA

pytest.importorskip("transformers")
SCALE = paper.PAPER.scale("smoke")


def test_segments_are_disjoint_pieces_of_the_text() -> None:
    parts, letters = paper.segments(SCALE, 3)
    text = paper.corpus("descriptions")
    rows = torch.cat(list(parts.values()))
    assert len(rows) == len(text) // SCALE["length"]
    pieces = letters.batch_decode(rows.tolist())
    assert sorted(pieces) == sorted(
        text[k : k + SCALE["length"]] for k in range(0, len(text) - SCALE["length"] + 1, SCALE["length"])
    )
    assert len(parts["members"]) == len(parts["others"]) == SCALE["members"]
    assert not paper.segments(SCALE, 4)[0]["members"].equal(parts["members"])
    assert letters(pieces[0])["input_ids"] == rows[0].tolist()


def test_sham_keeps_both_losses_and_pairs_them_wrongly() -> None:
    parts, letters = paper.segments(SCALE, 0)
    base, tuned = (paper.network(len(letters.letters), SCALE["length"], 16, 1, seed) for seed in (0, 1))
    x = parts["members"][:12]
    real, sham = FLoRaMIA(tuned, base), paper._Shuffled(tuned, base, seed=5)
    references = [a.reference(a.texts(x)) for a in (real, sham)]
    assert not references[0].equal(references[1])
    assert references[0].sort().values.equal(references[1].sort().values)
    torch.testing.assert_close(sham.score(x) * references[1], LossMIA(tuned).score(x))


def test_identities_hold_on_another_network() -> None:
    parts, letters = paper.segments(SCALE, 1)
    net = paper.network(len(letters.letters), SCALE["length"], 24, 1, 2)
    found = paper.exact(net, parts["others"][:3], parts["rest"][:50])
    assert found["norms"] < 1e-6
    assert found["equal"] == found["still"] == 0
    assert found["first"] < 1e-3
    assert found["rank"] < 1e-5
    assert found["residual"] < 1e-8
