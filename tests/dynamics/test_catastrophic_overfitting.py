from __future__ import annotations

import pytest
import torch

from assay.data import load_data
from assay.dynamics import AAEMonitor, overfits_catastrophically
from assay.losses import AAERLoss
from assay.nets import MLP
from assay.papers.aaer import ANGLES, integrals, wave_errors
from assay.runtime.errors import InputError
from assay.training import State, Supervised


@pytest.mark.parametrize(
    ("fgsm", "pgd", "expected"), [(0.6, 0.3, True), (0.5, 0.3, False), (0.51, 0.04, True), (0.2, 0.0, False)]
)
def test_verdict(fgsm: float, pgd: float, expected: bool) -> None:
    assert overfits_catastrophically(fgsm, pgd) is expected
    with pytest.raises(InputError, match="accuracies"):
        overfits_catastrophically(1.1, pgd)


@pytest.mark.parametrize("angle", ANGLES)
def test_share_and_means_on_a_cosine(angle: float) -> None:
    errors = wave_errors(AAERLoss(), angle, 20_000, seed=1)
    assert errors["share"] < 1e-2
    assert errors["means"] < 1e-3
    assert integrals(angle)["share"] == pytest.approx(angle / (2 * torch.pi))


def test_epochs_pool_their_batches() -> None:
    g = torch.Generator().manual_seed(0)
    before, after = (torch.randn(30, 4, generator=g) for _ in range(2))
    y = torch.randint(4, (30,), generator=g)
    pooled, parts = AAEMonitor(), AAEMonitor()
    pooled.update(after, y, before)
    for rows in (slice(0, 7), slice(7, 30)):
        parts.update(after[rows], y[rows], before[rows])
    expected, terms = pooled.close(), AAERLoss().terms(before, after, y)
    assert parts.close() == pytest.approx(expected)
    assert expected["share"] == float(terms["n_abnormal"]) / 30
    assert expected["ce_gap"] == pytest.approx(float(terms["ce_gap"]))
    assert expected["logit_shift_normal"] == pytest.approx(float(terms["logit_shift_normal"]))
    assert pooled.history == [expected]
    with pytest.raises(InputError, match="no batch"):
        pooled.close()


def test_a_run_without_single_steps_is_refused() -> None:
    data = load_data("digits:train")[:20]
    with pytest.raises(InputError, match="SingleStepAT"):
        Supervised(epochs=1).fit(MLP(), data, seed=0, hooks=[AAEMonitor()])
    with pytest.raises(InputError, match="SingleStepAT"):
        AAEMonitor()({}, State(0, data, 1))
