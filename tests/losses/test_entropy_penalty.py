"""The entropy penalty against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical

from assay.losses import PredictionEntropyLoss
from assay.runtime.errors import InputError

LOGITS = 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(50) % 6


@pytest.mark.parametrize("lam", [0.0, 0.3, 2.0])
def test_cross_entropy_plus_entropy(lam: float) -> None:
    expected = F.cross_entropy(LOGITS, Y, reduction="none") + lam * Categorical(logits=LOGITS).entropy()
    torch.testing.assert_close(PredictionEntropyLoss(lam, "none")(LOGITS, Y), expected)


def test_equal_logits_have_the_most_entropy() -> None:
    loss = PredictionEntropyLoss(2.0)(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    assert float(loss) == pytest.approx(3 * math.log(4))


@pytest.mark.parametrize("lam", [-1.0, math.inf, math.nan])
def test_bad_strength(lam: float) -> None:
    with pytest.raises(InputError):
        PredictionEntropyLoss(lam)
