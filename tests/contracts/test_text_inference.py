"""The contract of membership inference on texts, over every exported attack."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import assay.privacy as room
from assay.data import Batch, Data
from assay.privacy import TextInference
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import Plan, State, fit

transformers = pytest.importorskip("transformers", reason="the extra assay[hf] (transformers) is not installed")
FOUND = [
    c
    for c in (getattr(room, n) for n in room.__all__)
    if inspect.isclass(c) and issubclass(c, TextInference) and c is not TextInference
]
attacks = pytest.mark.parametrize("cls", FOUND, ids=lambda c: c.__name__)
N = 12
OPTIONS: dict[str, dict[str, Any]] = {"ALoRaMIA": {"lr": 0.5}}  # one small step tells little of texts known by heart


class Letters:
    """A tokenizer of the first letters of the alphabet."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 97 for c in text]}

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join(chr(97 + i) for i in row) for row in rows]


def make(cls: type[TextInference], model: nn.Module, base: nn.Module, **options: Any) -> TextInference:
    given = (model, base) if "base_model" in {f.name for f in fields(cls)} else (model,)
    return cls(*given, tokenizer=Letters(), **options)


@pytest.fixture(scope="module")
def texts() -> Tensor:
    return torch.randint(20, (2 * N, 9), generator=torch_rng(1, "texts"))


@pytest.fixture(scope="module")
def models(texts: Tensor) -> tuple[nn.Module, nn.Module]:
    """A tiny GPT-2 that learned the first half of the texts by heart, and as it was before."""
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=10, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    with seeded(0, "test"):
        start = transformers.GPT2LMHeadModel(config)

    def objective(net: nn.Module, batch: Batch, state: State) -> Tensor:
        return net(input_ids=texts[:N], labels=texts[:N]).loss

    clock = Data(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), ("a", "b"))
    return fit(start, clock, objective, Plan(steps=60, lr=2e-2, batch_size=2), seed=0), start


def test_the_suite_sees_attacks() -> None:
    expected = {"LossMIA", "ZlibMIA", "ZlibLoRaMIA", "MinKMIA", "GradNormMIA", "ALoRaMIA", "FLoRaMIA"}
    assert {c.__name__ for c in FOUND} == expected


@attacks
def test_finds_what_was_learned_by_heart(
    cls: type[TextInference], models: tuple[nn.Module, nn.Module], texts: Tensor
) -> None:
    member = [1] * N + [0] * N
    attack = make(cls, *models, **OPTIONS.get(cls.__name__, {}))
    if hasattr(attack, "oriented"):
        attack = attack.oriented(texts[: N // 2], texts[N : N + N // 2])
    assert roc_auc_score(member, attack.score(texts)) > 0.9
    blind = make(cls, models[1], models[1])
    assert abs(roc_auc_score(member, blind.score(texts)) - 0.5) < 0.36  # three deviations at twelve against twelve


@attacks
def test_same_scores_in_any_batch_and_nothing_changes(
    cls: type[TextInference], models: tuple[nn.Module, nn.Module], texts: Tensor
) -> None:
    before, ids = [copy.deepcopy(m.state_dict()) for m in models], texts.clone()
    models[1].train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    attack = make(cls, *models)
    scores = attack.score(texts)
    assert scores.shape == (2 * N,)
    assert scores.dtype == torch.float64
    assert torch.isfinite(scores).all()
    assert attack.score(texts).equal(scores)
    torch.testing.assert_close(replace(attack, batch_size=5).score(texts), scores, rtol=1e-4, atol=1e-6)
    rows = torch.tensor([7, 2])
    torch.testing.assert_close(attack.score(texts[rows]), scores[rows], rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert models[1].training
    assert not models[0].training
    models[1].eval()
    for net, kept in zip(models, before, strict=True):
        assert all(kept[k].equal(v) for k, v in net.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in net.parameters())
        assert not any(m._forward_hooks for m in net.modules())
    assert texts.equal(ids)


@attacks
def test_padding_behind_a_text_changes_nothing_and_strings_are_texts(
    cls: type[TextInference], models: tuple[nn.Module, nn.Module], texts: Tensor
) -> None:
    attack, short = make(cls, *models), texts[:3, :6]
    plain = attack.score(short)
    mask = torch.cat((torch.ones(3, 6), torch.zeros(3, 3)), 1).long()
    torch.testing.assert_close(attack.score(texts[:3], mask), plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attack.score(Letters().batch_decode(short.tolist())), plain, rtol=1e-4, atol=1e-6)


@attacks
def test_bad_input(cls: type[TextInference], models: tuple[nn.Module, nn.Module], texts: Tensor) -> None:
    attack = make(cls, *models)
    with pytest.raises(InputError, match="at least 2"):
        attack.score(texts[:, :1])
    with pytest.raises(InputError, match="expected int64"):
        attack.score(texts.float())
    with pytest.raises(InputError, match="expected int64"):
        attack.score(texts[:0])
    with pytest.raises(InputError, match="at least one text"):
        attack.score([])
    with pytest.raises(InputError, match="0 to 19"):
        attack.score(texts + 5)
    with pytest.raises(InputError, match="on the right only"):
        attack.score(texts[:2], torch.tensor([[0] + [1] * 8] * 2))
    with pytest.raises(InputError, match="no tokenizer"):
        replace(attack, tokenizer=None).score(["abc"])
    with pytest.raises(InputError, match="input embeddings"):
        make(cls, *(nn.Linear(2, 2),) * 2).score(texts)
    padded = copy.deepcopy(models[0])
    padded.config.pad_token_id = int(texts[0, 3])
    with pytest.raises(InputError, match="padding token"):
        make(cls, padded, models[1]).score(texts)
    broken = copy.deepcopy(models[0])
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(torch.nan)
    if cls.__name__ != "GradNormMIA":  # which warns
        with pytest.raises(InputError, match="finite"):
            make(cls, broken, models[1]).score(texts)
