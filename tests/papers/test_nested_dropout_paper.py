"""What the paper on nested dropout decides by: the sham keeps the number of channels and loses their order."""

from __future__ import annotations

import torch

from assay.papers import nested_dropout as paper
from assay.runtime.random import seeded


def test_the_sham_keeps_as_many_channels_anywhere() -> None:
    counts = {}
    for layer in (paper.NestedDropout, paper._RandomSubset):
        with seeded(0, "mask"):
            masks = torch.cat([layer(40, 10.0).mask(8) for _ in range(300)])
        counts[layer] = masks.float().mean(0), masks.sum(1).float().mean()
    (prefix, length), (anywhere, other) = counts.values()
    assert abs(float(length - other)) < 0.7
    assert (prefix.diff() <= 0).all()
    assert float(anywhere.max() - anywhere.min()) < 0.2
    assert float(prefix[0]) == 1.0
