"""What the shams of the Z-loss break, and what is counted as the cost of a step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from assay.losses import ZLoss
from assay.papers import z_loss as paper
from assay.runtime.errors import InputError


def test_uncentred_keeps_the_scale_and_loses_the_shift() -> None:
    real, sham = (paper.invariance(rule, 0) for rule in (ZLoss, paper.RULES["uncentred"]))
    assert max(real[k] for k in ("shifted", "scaled", "orthogonal", "gradient")) < 1e-10
    assert sham["scaled"] < 1e-10
    assert min(sham[k] for k in ("shifted", "orthogonal", "gradient")) > 0.1
    assert real["ce_scaled"] > 1


def test_old_inverse_differs_after_the_first_step_in_the_weights_alone() -> None:
    layers = [cls(6, 20, lr=0.3) for cls in (paper.SphericalLinear, paper.LAYERS["old-inverse"])]
    (h, y), *_ = paper._batches(20, 1, 0)
    h = h[:, :6].contiguous()
    losses = [layer.step(h, y)[0] for layer in layers]
    assert torch.equal(*losses)
    gap = (layers[0].weight() - layers[1].weight()).abs()
    assert float(gap.max()) > 1e-5
    assert not gap[[k for k in range(20) if k not in y.tolist()]].any()


def test_words_are_contexts_in_order() -> None:
    scale = paper.PAPER.scale("smoke")
    train, held, test = paper._next_words(scale, 0)
    assert (len(train), len(held), len(test)) == (1500, 375, 375)
    assert train.x.shape[1] == paper.CONTEXT
    words, size = paper._text("markov"), scale["words"]["vocabulary"]
    known = {w: k for k, (w, _) in enumerate(Counter(words).most_common(size))}
    ids = [known.get(w, size) for w in words]
    runs = set(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
    found = [(*map(int, x), int(y)) for part in (train, held, test) for x, y in zip(part.x, part.y, strict=True)]
    assert len(set(found) - runs) <= paper.CONTEXT  # the text is read on from its start
    assert max(map(max, found)) == size
    assert max(run[-1] for run in found) < size
    with pytest.raises(InputError, match="expected"):
        paper._text("no such text")
