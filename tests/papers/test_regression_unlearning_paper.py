"""The data and identities of regression-unlearning, and what its shams keep and lose."""

import pytest
import torch

from assay.data import load_data
from assay.papers import regression_unlearning as paper
from assay.unlearn import BlindspotUnlearn


@pytest.mark.parametrize("seed", range(3))
def test_identities_hold_on_other_seeds(seed: int) -> None:
    assert max(paper._identities(seed).values()) < 1e-5


def test_images_turn_by_their_angle() -> None:
    data = load_data("digits:train").limit(30)
    quarter = paper.rotated(data.x, torch.full((30,), 90.0))
    turned = [torch.rot90(data.x, k, (2, 3)) for k in (1, 3)]
    assert any(torch.allclose(quarter, t, atol=1e-5) for t in turned)
    assert torch.allclose(paper.rotated(data.x, torch.zeros(30)), data.x, atol=1e-5)
    found = paper._turned(data, 8, 4)
    assert found.fields["target"].abs().max() <= 60
    assert torch.equal(paper._turned(data[:5], 8, 4).x, found.x[:5])
    lost, kept = paper._parts(found)
    assert lost.fields["target"].max() <= -30 < kept.fields["target"].min()


def test_shams_start_and_flag_otherwise() -> None:
    scale = paper.PAPER.scale("smoke")
    subject = paper._subject(scale, 0)
    real, copied, inverted = (cls(batch_size=64) for cls in (BlindspotUnlearn, paper._CopiedProxy, paper._InvertedFlag))
    assert copied.start(subject, seed=0) is subject.model
    new = real.start(subject, seed=0)
    assert not any(torch.equal(p, q) for p, q in zip(new.parameters(), subject.model.parameters(), strict=True))
    batch, u = subject.test.batch(torch.arange(10)), torch.arange(10) < 4
    with torch.no_grad():
        sides = [method.blend(subject.model, new, batch, flag, 0.4) for method, flag in ((real, ~u), (inverted, u))]
        plain = real.blend(subject.model, new, batch, u, 0.4)
    assert torch.equal(*sides)
    assert float(plain) != float(sides[0])
