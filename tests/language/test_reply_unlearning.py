"""Unlearning of replies: the losses against their formulas, and the scores against counting."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from assay.language import (
    NPO,
    RMU,
    GradAscent,
    GradDiff,
    Replies,
    control_vector,
    exact_memorization,
    extraction_strength,
    forget_quality,
    probability,
    tofu_evaluation,
    truth_ratio,
    write_evaluation,
)
from assay.language.rmu import activations
from assay.runtime.errors import InputError
from assay.runtime.random import seeded

transformers = pytest.importorskip("transformers", reason="the extra assay[hf] (transformers) is not installed")
LAYER = {"layer": "transformer.h.0", "params": ("transformer.h.0.mlp.c_proj",)}


def gpt(seed: int) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=12, n_positions=10, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with seeded(seed, "test"):
        return transformers.GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    first, second = gpt(0), gpt(1)
    for net in (first, second):
        net.lm_head.weight.data.mul_(20)  # type: ignore[union-attr, operator]
    return first, second


@pytest.fixture(scope="module")
def batch() -> Replies:
    return Replies.of([[1, 2], [3, 4, 5], [6]], [[7, 8, 9], [10, 11], [1, 2, 3, 4]])


def logps(model: nn.Module, batch: Replies) -> list[list[float]]:
    """Of every target token, one row at a time and without padding."""
    rows = []
    for ids, labels, real in zip(batch.ids, batch.labels, batch.attention, strict=True):
        logits = model(ids[real][None]).logits[0].log_softmax(1)
        at = [i for i in range(1, int(real.sum())) if labels[i] != -100]
        rows.append([float(logits[i - 1, ids[i]]) for i in at])
    return rows


@torch.no_grad()
def test_ascent_and_difference_are_their_formulas(models: tuple[nn.Module, nn.Module], batch: Replies) -> None:
    model, reference = models
    each = logps(model, batch)
    token_mean = sum(map(sum, each)) / sum(map(len, each))
    ascent = GradAscent().losses(model, None, batch, None)["loss"].item()
    assert ascent == pytest.approx(token_mean)
    by_transformers = model(input_ids=batch.ids, attention_mask=batch.attention.long(), labels=batch.labels).loss
    assert ascent == pytest.approx(-by_transformers.item())
    whole = GradAscent(per="reply").losses(model, None, batch, None)["loss"].item()
    assert whole == pytest.approx(np.mean([sum(r) for r in each]))
    held = batch[1:]
    kept = sum(map(sum, each[1:])) / sum(map(len, each[1:]))
    difference = GradDiff(gamma=0.5, alpha=2.0).losses(model, None, batch, held)
    assert difference["loss"].item() == pytest.approx(0.5 * token_mean - 2.0 * kept)
    divergence = GradDiff(retain_loss="kl").losses(model, reference, batch, held)["retain"].item()
    total, count = 0.0, 0
    for ids, labels, real in zip(held.ids, held.labels, held.attention, strict=True):
        p, q = (m(ids[real][None]).logits[0].log_softmax(1) for m in (reference, model))
        at = [i - 1 for i in range(1, int(real.sum())) if labels[i] != -100]
        total, count = total + float((p.exp() * (p - q))[at].sum()), count + len(at)
    assert divergence == pytest.approx(total / count)


def test_npo_is_its_formula_and_becomes_gradient_ascent(models: tuple[nn.Module, nn.Module], batch: Replies) -> None:
    model, reference = models
    with torch.no_grad():
        ratio = np.array([sum(a) - sum(b) for a, b in zip(logps(model, batch), logps(reference, batch), strict=True)])
    sigmoid = 1 / (1 + np.exp(0.3 * ratio))
    loss = NPO(beta=0.3).losses(model, reference, batch, None)["loss"].item()
    assert loss == pytest.approx(-2 / 0.3 * np.log(sigmoid).mean())
    beta = 1e-5
    small = NPO(beta=beta).losses(model, reference, batch, None)["loss"]
    assert small.item() - 2 / beta * math.log(2) == pytest.approx(ratio.mean(), abs=1e-3)
    ascent = GradAscent(per="reply").losses(model, None, batch, None)["loss"]
    weight = dict(model.named_parameters())["transformer.wte.weight"]  # the head's too
    ours, theirs = (torch.autograd.grad(f, weight)[0] for f in (small, ascent))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    same = NPO(beta=0.3).losses(model, model, batch, None)["loss"].item()
    assert same == pytest.approx(2 / 0.3 * math.log(2))
    with pytest.raises(InputError, match="beta"):
        NPO(beta=0.0)


def test_rmu_aims_one_layer_at_a_random_unit_vector(models: tuple[nn.Module, nn.Module], batch: Replies) -> None:
    model, reference = models
    u = control_vector(16, seed=4)
    assert u.norm().item() == pytest.approx(1.0)
    assert (u >= 0).all()
    assert not control_vector(16, seed=5).allclose(u)
    method = RMU(coefficient=3.0, alpha=0.7, **LAYER)  # type: ignore[arg-type]
    with torch.no_grad():
        parts = method.losses(model, reference, batch, batch[:2], seed=4)
        assert not any(m._forward_hooks for net in models for m in net.transformer.h)  # type: ignore[union-attr]
        rows = []
        for net in (model, reference):
            hidden = net(input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
            rows.append(hidden.hidden_states[1])  # after the first block
        at = batch.labels != -100
        lost = np.mean([float((h[a] - 3.0 * u).square().mean()) for h, a in zip(rows[0], at, strict=True)])
        held = np.mean([float((g[a] - h[a]).square().mean()) for g, h, a in zip(*rows, at, strict=True)][:2])
    assert parts["forget"].item() == pytest.approx(lost)
    assert parts["retain"].item() == pytest.approx(held)
    assert parts["loss"].item() == pytest.approx(lost + 0.7 * held)


def test_rmu_moves_the_named_parameters_alone(models: tuple[nn.Module, nn.Module], batch: Replies) -> None:
    model = models[0]
    method = RMU(steps=2, batch_size=3, lr=1e-2, alpha=1.0, **LAYER)  # type: ignore[arg-type]
    after = method.forget(model, batch, batch[:2], seed=0)
    for (name, p), q in zip(model.named_parameters(), after.parameters(), strict=True):
        assert p.equal(q) != name.startswith("transformer.h.0.mlp.c_proj."), name
    u = control_vector(16, seed=0).double()
    with torch.no_grad():
        gaps = [
            (activations(m, "transformer.h.0", batch)[batch.targets] - 6.5 * u).norm(dim=1).mean()
            for m in (model, after)
        ]
    assert gaps[1] < gaps[0]
    with pytest.raises(InputError, match="layer"):
        replace(method, layer="transformer.h.9").forget(model, batch, batch, seed=0)
    with pytest.raises(InputError, match="no hidden states"):
        replace(method, layer="transformer.h").forget(model, batch, batch, seed=0)
    tied = replace(method, params=("lm_head", "transformer.wte")).trained(model)
    assert len(tied) == 1
    assert tied[0] is model.lm_head.weight
    with pytest.raises(InputError, match="parameter"):
        replace(method, params=("transformer.h.9",)).forget(model, batch, batch, seed=0)


def test_half_precision_is_float32_s_losses_or_refused(models: tuple[nn.Module, nn.Module], batch: Replies) -> None:
    low = tuple(copy.deepcopy(m).bfloat16() for m in models)
    high = tuple(copy.deepcopy(m).float() for m in low)
    for method in (GradAscent(), GradDiff(retain_loss="kl"), NPO(), RMU(alpha=1.0, **LAYER)):  # type: ignore[arg-type]
        few, many = (method.losses(*nets, batch, batch)["loss"] for nets in (low, high))
        assert few.dtype == torch.float32
        assert few.item() == pytest.approx(many.item(), rel=0.05)
        after = replace(method, epochs=1).forget(low[0], batch, batch, seed=0)
        assert all(torch.isfinite(p).all() for p in after.parameters())
    with pytest.raises(InputError, match="float16"):
        GradAscent(epochs=1).forget(copy.deepcopy(models[0]).half(), batch, seed=0)


def test_options_are_checked() -> None:
    for cls, options in ((GradAscent, {"per": "word"}), (GradDiff, {"alpha": -1.0}), (GradDiff, {"retain_loss": "l2"})):
        with pytest.raises(InputError):
            cls(**options)


class Script(nn.Module):
    """Says after every token the one that the table gives for it, with probability 0.9."""

    def __init__(self, follows: dict[int, int], vocabulary: int = 12) -> None:
        super().__init__()
        table = torch.full((vocabulary, vocabulary), math.log(0.1 / (vocabulary - 1)))
        for a in range(vocabulary):
            table[a, follows.get(a, 0)] = math.log(0.9)
        self.table = nn.Parameter(table)
        self.embed = nn.Embedding(vocabulary, vocabulary)
        self.embed.weight.data.copy_(torch.eye(vocabulary))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return transformers.modeling_outputs.CausalLMOutput(logits=inputs_embeds @ self.table)


def test_scores_count_what_the_model_says() -> None:
    model = Script({1: 2, 2: 3, 3: 4, 4: 5, 6: 7})
    replies = Replies.of(
        [[1], [9], [1], [5]],
        # all right; only the last two right; the last wrong; nothing right. The end of the sequence (11) is never said.
        [[2, 3, 4, 5, 11], [8, 1, 2, 3, 11], [2, 3, 4, 9, 11], [8, 9, 11]],
    )
    em = exact_memorization(model, replies, batch_size=3)
    es = extraction_strength(model, replies, batch_size=1)
    assert [r["score"] for r in em["value_by_index"].values()] == [1.0, 0.5, 0.75, 0.0]
    assert [r["score"] for r in es["value_by_index"].values()] == [1.0, 0.5, 0.0, 0.0]
    assert list(em["value_by_index"]) == ["0", "1", "2", "3"]
    assert em["agg_value"] == pytest.approx(2.25 / 4)
    with_end = extraction_strength(model, replies, eos=False)["value_by_index"]
    assert [r["score"] for r in with_end.values()] == [0.0, 0.0, 0.0, 0.0]
    p = probability(model, replies)["value_by_index"]["0"]
    expected = (4 * math.log(0.9) + math.log(0.1 / 11)) / 5
    assert p["prob"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert p["avg_loss"] == pytest.approx(-expected, rel=1e-5)
    with pytest.raises(InputError, match="two tokens or more"):
        exact_memorization(model, Replies.of([[1]], [[2]]))
    with pytest.raises(InputError, match="batch_size"):
        probability(model, replies, batch_size=0)


def test_extraction_strength_is_that_of_greedy_decoding(models: tuple[nn.Module, nn.Module]) -> None:
    model, rng = models[0], torch.Generator().manual_seed(0)
    replies = Replies.of(torch.randint(1, 4, (8, 2), generator=rng).tolist(), [[1, 2, 3]] * 8)
    found = [r["score"] for r in extraction_strength(model, replies, eos=False)["value_by_index"].values()]
    for i, row in enumerate(replies.ids):
        shortest = 3
        for given in (2, 1, 0):
            said = row[: 2 + given]
            while len(said) < 5:
                said = torch.cat((said, model(said[None]).logits[0, -1].argmax()[None]))
            shortest = given if said.equal(row) else shortest
        assert found[i] == pytest.approx(1 - shortest / 3)


def test_truth_ratio_and_forget_quality_are_open_unlearnings() -> None:
    model = Script({1: 2, 2: 3, 3: 4})
    correct = Replies.of([[1], [1]], [[2, 3], [9, 9]])
    wrong = [Replies.of([[1], [1]], [[9, 3], [2, 9]]), Replies.of([[1], [1]], [[9, 9], [2, 3]])]
    low, high = math.log(0.1 / 11), math.log(0.9)
    right = np.exp([high, low])
    false = np.exp([(low + low + low + low) / 4, (high + low + high + high) / 4])
    expected = false / (right + 1e-10)
    for better, each in (
        ("closer_to_1_better", np.minimum(expected, 1 / (expected + 1e-10))),
        ("true_better", np.maximum(0, 1 - expected)),
    ):
        found = truth_ratio(model, correct, wrong, better=better)  # type: ignore[arg-type]
        scores = [r["score"] for r in found["value_by_index"].values()]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert found["agg_value"] == pytest.approx(each.mean(), rel=1e-5)
    other = truth_ratio(Script({}), correct, wrong)
    p = ks_2samp(1 / expected, [1 / r["score"] for r in other["value_by_index"].values()]).pvalue
    assert forget_quality(truth_ratio(model, correct, wrong), other)["agg_value"] == pytest.approx(p)
    for bad in ([], [wrong[0][:1]]):
        with pytest.raises(InputError, match="wrong replies"):
            truth_ratio(model, correct, bad)
    with pytest.raises(InputError, match="aggregate"):
        truth_ratio(model, correct, wrong, better="lower")  # type: ignore[arg-type]


def test_files_have_the_form_of_open_unlearning(tmp_path: Path) -> None:
    model, forget = Script({1: 2, 2: 3}), Replies.of([[1], [4]], [[2, 3, 11], [5, 11]])
    clean = tofu_evaluation(Script({}), forget, perturbed=[forget])
    results = tofu_evaluation(model, forget, perturbed=[forget], retrained=clean)
    paths = write_evaluation(results, tmp_path / "evals")
    assert [p.name for p in paths] == ["TOFU_EVAL.json", "TOFU_SUMMARY.json"]
    full, summary = (json.loads(p.read_text()) for p in paths)
    names = {"forget_Q_A_Prob", "exact_memorization", "extraction_strength", "forget_truth_ratio", "forget_quality"}
    assert set(full) == set(summary) == names
    assert all(full[k]["agg_value"] == v for k, v in summary.items())
    assert set(full["forget_Q_A_Prob"]["value_by_index"]["1"]) == {"prob", "avg_loss"}
    assert set(full["forget_truth_ratio"]["value_by_index"]["0"]) == {"score"}
    assert summary["exact_memorization"] == 0.5
    assert not tofu_evaluation(model, forget).keys() & {"forget_truth_ratio", "forget_quality"}
