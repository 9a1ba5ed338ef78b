"""The guard: its bound, its reasons, the panel, and what it takes from vision-language models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch import nn

from assay.calibrate import Outputs
from assay.data import load_data
from assay.decide import (
    Safeguard,
    answer_logits,
    ood_auroc,
    perturbation_panel,
    sequence_confidence,
)
from assay.nets import MLP
from assay.runtime.errors import InputError


def answers(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Calibrated logits over four answers."""
    g = torch.Generator().manual_seed(seed)
    z = 4 * torch.randn(n, 4, generator=g)
    return z, z.softmax(1).multinomial(1, generator=g)[:, 0]


def test_the_bound_holds_on_new_samples() -> None:
    risks = []
    for seed in range(20):
        guard = Safeguard(risk=0.1).fit(Outputs((v := answers(400, seed))[0]), v[1])
        assert 0 < guard.coverage_ < 1
        assert guard.bound_ <= 0.1
        risks.append(guard.report(*answers(4000, 100 + seed))["risk"])
    assert np.mean(np.array(risks) <= 0.1) >= 0.9


def test_the_threshold_is_a_clopper_pearson_bound() -> None:
    correct, u = np.r_[np.ones(60), np.zeros(40)], np.arange(100.0)
    guard = Safeguard(risk=0.2, level=0.9)
    threshold, bound = guard.threshold(correct, u)
    kept = u <= threshold
    errors, n = int((1 - correct[kept]).sum()), int(kept.sum())
    assert bound == pytest.approx(beta.ppf(1 - 0.1 / 8, errors + 1, n - errors))
    assert 50 < n < 80
    assert guard.threshold(np.zeros(50), np.arange(50.0)) == (-np.inf, 0.0)


def test_all_are_answered_where_full_coverage_meets_the_promise() -> None:
    threshold, bound = Safeguard(risk=0.05).threshold(np.ones(102), np.arange(102.0))
    assert threshold == 101
    assert bound == pytest.approx(beta.ppf(1 - 0.05 / 8, 1, 102))
    assert bound <= 0.05
    assert Safeguard(risk=0.05).threshold(np.ones(60), np.zeros(60))[0] == 0


def test_logits_with_a_graph_are_taken() -> None:
    z, y = answers(200, 0)
    plain, followed = (Safeguard(risk=0.2).fit(Outputs(t), y) for t in (z.clone(), z.requires_grad_()))
    assert followed.threshold_ == plain.threshold_
    assert followed.decide(z).reason == plain.decide(z.detach()).reason
    assert followed.report(z, y) == plain.report(z.detach(), y)
    assert ood_auroc(z, z) == ood_auroc(z.detach(), z.detach())


def test_reasons() -> None:
    guard = Safeguard(risk=0.1).fit(Outputs((v := answers(1000, 3))[0]), v[1])
    sure, unsure, foreign = torch.tensor([[9.0, 0, 0, 0], [1.0, 1, 1, 1], [-9.0, -9, -9, -9]])
    found = guard.decide(torch.stack((sure, unsure, foreign)))
    assert found.reason == ("accepted", "uncertain", "foreign")
    assert found.accept.tolist() == [True, False, False]
    report = guard.report(*answers(500, 4))
    assert {"accuracy", "ece", "miscalibration", "trust", "answered"} <= set(report)
    nothing = Safeguard(risk=0.01).fit(Outputs((w := answers(60, 5))[0]), (w[1] + 1) % 4)
    assert not nothing.decide(w[0]).accept.any()
    assert np.isnan(nothing.report(*w)["risk"])


def test_panel_and_foreign_inputs() -> None:
    data = load_data("digits:test").limit(60)
    torch.manual_seed(0)
    model = MLP()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    rows = perturbation_panel(model, data, severities=(1, 5), seed=0)
    assert len(rows) == 1 + 3 * 2
    assert rows == perturbation_panel(model, data, severities=(1, 5), seed=0)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    known, foreign = answers(200, 0)[0] * 3, torch.zeros(100, 4)
    assert ood_auroc(known, foreign)["msp"] > 0.95
    assert ood_auroc(known, known) == pytest.approx({"msp": 0.5, "entropy": 0.5, "energy": 0.5})
    with pytest.raises(InputError):
        perturbation_panel(model, data, corruptions=("fog",), seed=0)


def test_sentences() -> None:
    g = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(3, 5, 7, generator=g), torch.randint(7, (3, 5), generator=g)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    found = sequence_confidence(logits, tokens, mask)
    log_p = logits.log_softmax(2)
    expected = [np.mean([float(log_p[i, t, tokens[i, t]]) for t in range(k)]) for i, k in enumerate((5, 2, 1))]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert (found <= 0).all()
    barred = logits.masked_fill(~mask[:, :, None], -torch.inf)
    assert torch.equal(sequence_confidence(barred, tokens, mask), found)
    assert torch.equal(sequence_confidence(logits, tokens.masked_fill(~mask, -100), mask), found)
    assert torch.equal(sequence_confidence(logits, tokens, 2 * mask.long()), found)
    lost = logits.masked_fill(tokens[:, :, None] == tokens[0, 0], torch.nan)
    for a, b, m in (
        (logits[0], tokens, mask), (logits, tokens + 7, mask), (logits, tokens, mask & False), (lost, tokens, mask)
    ):  # fmt: skip
        with pytest.raises(InputError, match="expected"):
            sequence_confidence(a, b, m)


def test_sentences_in_half_precision_have_the_digits_of_float32() -> None:
    logits = (10 * torch.randn(6, 5, 400, generator=torch.Generator().manual_seed(0))).bfloat16()
    tokens = logits.argmax(2)
    exact = sequence_confidence(logits.double(), tokens)
    torch.testing.assert_close(sequence_confidence(logits, tokens).double(), exact, rtol=1e-4, atol=1e-5)


def test_a_question_answering_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViltConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20,
        image_size=16, patch_size=8, max_position_embeddings=8, num_labels=5,
        id2label={k: str(k) for k in range(5)}, label2id={str(k): k for k in range(5)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViltForQuestionAnswering(config).train()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = {
        "input_ids": torch.randint(20, (6, 4)),
        "pixel_values": torch.rand(6, 3, 16, 16),
        "pixel_mask": torch.ones(6, 16, 16, dtype=torch.long),
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found = answer_logits(model, inputs)
    assert found.shape == (6, 5)
    assert model.training
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    guard = Safeguard().fit(Outputs(found), found.argmax(1))
    assert len(guard.decide(found).reason) == 6


def test_bad_input() -> None:
    for risk, level, fpr in ((0.0, 0.9, 0.1), (0.1, 1.0, 0.1), (0.1, 0.9, 2.0)):
        with pytest.raises(InputError, match="expected"):
            Safeguard(risk=risk, level=level, fpr=fpr)
    with pytest.raises(InputError):
        Safeguard(score="other")  # type: ignore[arg-type]
    z, y = answers(50, 0)
    with pytest.raises(InputError, match="expected"):
        Safeguard().fit(Outputs(z), y + 4)
    with pytest.raises(InputError, match="as fitted"):
        Safeguard().fit(Outputs(z), y).decide(z[:, :3])
    with pytest.raises(InputError, match="expected"):
        answer_logits(nn.Identity(), {})
    with pytest.raises(InputError, match="expected"):
        answer_logits(nn.Identity(), {"a": torch.ones(2, 2), "b": torch.ones(3, 2)})
    with pytest.raises(InputError, match="expected"):
        ood_auroc(z, z[:, :3])
