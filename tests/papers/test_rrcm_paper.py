"""What rRCM's paper decides by: each sham changes what it names and nothing else."""

from __future__ import annotations

import pytest

from assay.papers import rrcm as paper


def test_only_the_missing_factor_doubles_the_radius() -> None:
    for seed in (1, 2):
        real, sham = (paper.half_space(seed, sham=s)[-1] for s in (None, "missing-factor-two"))
        assert 0.88 < real["least"] <= real["largest"] < 1.02
        assert sham["least"] / real["least"] == pytest.approx(2, rel=0.1)
        assert real["passes"] == sham["passes"] == 1
        assert paper.half_space(seed, sham="shuffled-positive")[-1] == real


def test_only_the_shuffle_changes_the_consistency_term() -> None:
    for seed in (1, 2):
        real, other, sham = (paper.loss_terms(seed, sham=s) for s in (None, "missing-factor-two", "shuffled-positive"))
        assert real == other
        assert max(v for k, v in real.items() if k != "arm") < 1e-6
        assert sham["consistency"] > 0.01
        assert sham["contrast"] == real["contrast"]


def test_the_gpu_scale_takes_a_transformer() -> None:
    data, _ = paper._images("digits")
    encoder = paper._encoder(data, (), 0)
    assert len(list(encoder.net.vit.blocks)) == 12  # type: ignore[union-attr, arg-type]
    assert paper.PAPER.scale("gpu")["pretrain"].batch_size == 2048
