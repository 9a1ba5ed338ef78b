"""Membership inference on texts against closed forms, and against single backward passes of transformers' models."""

from __future__ import annotations

import copy
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from assay.privacy import (
    ALoRaMIA,
    FineTuneExtractor,
    FLoRaMIA,
    GradNormMIA,
    LossMIA,
    MinKMIA,
    ModelStealing,
    SupervisedMIA,
    ZlibLoRaMIA,
    ZlibMIA,
    extraction_rates,
    gradient_features,
    membership_rates,
    tpr_at_fpr,
)
from assay.privacy.llm_mia.base import token_losses
from assay.privacy.llm_mia.gradient_features import balanced_groups, projected
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng

transformers = pytest.importorskip("transformers", reason="the extra assay[hf] (transformers) is not installed")
VOCABULARY, WIDTH = 23, 16


def gpt2(seed: int = 0) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    with seeded(seed, "test"):
        net = transformers.GPT2LMHeadModel(config)
        for p in net.parameters():
            p.data += 0.2 * torch.randn_like(p)
    return net


def neox() -> nn.Module:
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with seeded(0, "test"):
        return transformers.GPTNeoXForCausalLM(config)


def tokens(n: int = 5, t: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (n, t), generator=torch_rng(seed, "tokens"))


LENGTHS = (12, 9, 12, 4, 2)


def mask() -> Tensor:
    return (torch.arange(12)[None] < torch.tensor(LENGTHS)[:, None]).long()


class Letters:
    """A tokenizer of the first letters of the alphabet."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 97 for c in text]}

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join(chr(97 + i) for i in row) for row in rows]


@pytest.fixture(scope="module", params=[gpt2, neox], ids=["gpt2", "neox"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return request.param()


def single(model: nn.Module, ids: Tensor, length: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one text by transformers and one backward pass."""
    net = copy.deepcopy(model).eval()
    part = ids[None, :length]
    loss = net(part, labels=part).loss
    loss.backward()
    return float(loss), {k: p.grad for k, p in net.named_parameters()}


def test_losses_are_those_of_transformers(model: nn.Module) -> None:
    x = tokens()
    expected = torch.tensor([single(model, row, n)[0] for row, n in zip(x, LENGTHS, strict=True)])
    found = LossMIA(model, batch_size=2).score(x, mask())
    torch.testing.assert_close(found.float(), -expected, rtol=1e-5, atol=1e-6)
    text = LossMIA(model, tokenizer=Letters()).score(
        [Letters().batch_decode([r[:n].tolist()])[0] for r, n in zip(x, LENGTHS, strict=True)]
    )
    torch.testing.assert_close(text, found)


def test_gradient_norms_are_those_of_single_backward_passes(model: nn.Module) -> None:
    x, name = tokens(), next(iter(dict(model.named_parameters())))
    for p in (1, 2, math.inf):
        every, one = [], []
        for row, n in zip(x, LENGTHS, strict=True):
            found = single(model, row, n)[1]
            every.append(torch.cat([g.flatten() for g in found.values()]).norm(p))
            one.append(found[name].norm(p) if found[name].dim() == 1 else found[name].flatten().norm(p))
        total = GradNormMIA(model, p=p, where="all", batch_size=3).score(x, mask())
        torch.testing.assert_close(total.float(), -torch.stack(every), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            GradNormMIA(model, p=p, where=name).score(x, mask()).float(), -torch.stack(one), rtol=1e-5, atol=1e-6
        )


def test_embedding_gradient_is_that_of_the_inputs_not_of_the_table() -> None:
    model, x = gpt2().eval(), tokens(1)
    e = model.get_input_embeddings()(x).detach().requires_grad_()
    model(inputs_embeds=e, labels=x).loss.backward()
    found = GradNormMIA(model).score(x)
    torch.testing.assert_close(found[0].float(), -e.grad.norm(), rtol=1e-5, atol=1e-7)
    table = GradNormMIA(model, where="transformer.wte.weight").score(x)
    assert abs(float(table - found)) > 1e-2  # tied to the output layer


def test_norm_features_hold_what_the_attacks_score(model: nn.Module) -> None:
    x = tokens()
    told = gradient_features(model, x, mask(), batch_size=2)
    assert told.shape == (5, 3 * (2 + len(list(model.parameters()))))
    for i, p in enumerate((1, 2, math.inf)):
        torch.testing.assert_close(told[:, i], -GradNormMIA(model, p=p).score(x, mask()), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            told[:, 3 + i], -GradNormMIA(model, p=p, where="all").score(x, mask()), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(told[:, 3 + i], told[:, 6 + i :: 3].norm(p, dim=1), rtol=1e-6, atol=1e-9)


def test_projections_keep_inner_products_on_average_and_do_not_depend_on_the_batch() -> None:
    x = torch.randn(3, 200, generator=torch_rng(1, "x"), dtype=torch.float64)
    for distribution in ("rademacher", "normal"):
        found = projected(x, 4096, distribution, 229, "s")
        torch.testing.assert_close(found @ found.T, x @ x.T, rtol=0.1, atol=15)
        torch.testing.assert_close(
            projected(x[:, :150], 8, distribution, 1, "s")
            + projected(torch.cat((torch.zeros(3, 150, dtype=torch.float64), x[:, 150:]), 1), 8, distribution, 1, "s"),
            projected(x, 8, distribution, 1, "s"),
            rtol=1e-9,
            atol=1e-9,
        )
    model, ids = gpt2(), tokens()
    for kind in ("projections", "balanced"):
        whole = gradient_features(model, ids, mask(), kind=kind, dim=3, groups=4)
        assert whole.shape == (5, 3 * (1 + (len(list(model.parameters())) if kind == "projections" else 4)))
        parts = gradient_features(model, ids, mask(), kind=kind, dim=3, groups=4, batch_size=2)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
        short = gradient_features(model, ids[3:, :4], mask()[3:, :4], kind=kind, dim=3, groups=4)
        torch.testing.assert_close(short, whole[3:], rtol=1e-4, atol=1e-6)
        assert not gradient_features(model, ids, mask(), kind=kind, dim=3, seed=1, groups=4).allclose(whole)


def test_balanced_groups_are_the_greedy_partition() -> None:
    assert balanced_groups({"a": 5, "b": 9, "c": 4, "d": 3, "e": 3}, 2) == [["b", "d"], ["a", "c", "e"]]


def test_min_k_and_zlib_in_numbers() -> None:
    model, x = gpt2(), tokens()
    losses = token_losses(model, LossMIA(model).texts(x, mask()), 8)
    for k in (0.2, 0.5, 1.0):
        expected = []
        for row, n in zip(losses, LENGTHS, strict=True):
            kept = max(int((n - 1) * k + 1e-9), 1)
            expected.append(-np.sort(row[: n - 1].numpy())[::-1][:kept].mean())
        torch.testing.assert_close(MinKMIA(model, k=k).score(x, mask()), torch.tensor(expected))
    torch.testing.assert_close(MinKMIA(model, k=1.0).score(x, mask()), LossMIA(model).score(x, mask()))
    text = ["abcabcabc", "qwertyu".replace("y", "e")]
    size = torch.tensor([len(zlib.compress(t.encode())) for t in text], dtype=torch.float64)
    plain = LossMIA(model, tokenizer=Letters()).score(text)
    for kind in (ZlibMIA, ZlibLoRaMIA):
        torch.testing.assert_close(kind(model, tokenizer=Letters()).score(text), plain / size)
    ids = torch.tensor([Letters()(t)["input_ids"] + [0] * (9 - len(t)) for t in text])
    real = (torch.arange(9)[None] < torch.tensor([9, 7])[:, None]).long()
    torch.testing.assert_close(ZlibMIA(model, tokenizer=Letters()).score(ids, real), plain / size)
    with pytest.raises(InputError, match="no tokenizer"):
        ZlibMIA(model).score(x)


def test_ratios_of_equal_models_and_of_no_step_are_one(model: nn.Module) -> None:
    x, before = tokens(), {k: v.clone() for k, v in model.state_dict().items()}
    ones = torch.ones(5, dtype=torch.float64)
    assert FLoRaMIA(model, copy.deepcopy(model)).score(x, mask()).equal(-ones)
    assert ALoRaMIA(model, lr=0.0).score(x, mask()).equal(ones)
    assert ALoRaMIA(model, lr=0.0, sign=-1).score(x, mask()).equal(-ones)
    ALoRaMIA(model, lr=0.3).score(x, mask())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_small_step_lowers_the_loss_by_the_squared_gradient() -> None:
    model, x = gpt2().double(), tokens()
    texts, lr = LossMIA(model).texts(x, mask()), 1e-5
    loss, squared = -LossMIA(model).score(x, mask()), GradNormMIA(model, where="all").score(x, mask()).square()
    fall = loss * (1 - ALoRaMIA(model, lr=lr).ratio(texts))
    torch.testing.assert_close(fall, lr * squared, rtol=1e-3, atol=0)


def test_sign_of_the_approximate_ratio_is_set_on_held_out_texts() -> None:
    model, x = gpt2(), tokens(8)
    attack = ALoRaMIA(model, lr=0.1)
    order = attack.ratio(attack.texts(x)).argsort()
    low, high = x[order[:4]], x[order[4:]]
    assert attack.oriented(high, low).sign == 1
    assert attack.oriented(low, high).sign == -1


def test_zero_base_loss_and_other_vocabulary_are_refused() -> None:
    model = gpt2()
    other = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None
        )
    )
    with pytest.raises(InputError, match="vocabularies"):
        FLoRaMIA(model, other).score(tokens())
    with pytest.raises(InputError, match="expected at most 16"):
        LossMIA(other).score(torch.ones(2, 17, dtype=torch.int64))
    sure = copy.deepcopy(other)
    with torch.no_grad():
        for p in sure.parameters():
            p.zero_()
        sure.transformer.ln_f.bias[0] = 1e3
        sure.transformer.wte.weight[3, 0] = 1e3
    with pytest.raises(InputError, match="base loss of 1 texts is 0"):
        FLoRaMIA(other, sure).score(torch.tensor([[3, 3, 3], [1, 2, 3]]))


def test_overflowing_gradients_warn() -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.wte.weight[5] = math.inf
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert (GradNormMIA(model).score(torch.tensor([[5, 1, 2]])) == -math.inf).all()


def test_stolen_layer_has_the_rank_and_the_gradient_of_the_head() -> None:
    model = gpt2().double().eval()
    fitted = ModelStealing(dim=4).fit(model, tokens(60, 8, seed=3))
    assert fitted.head_.shape == (VOCABULARY, WIDTH)
    assert float(fitted.singular_values_[WIDTH] / fitted.singular_values_[0]) < 1e-5
    x = tokens(2)
    with torch.no_grad():
        logits = model(x).logits
        torch.testing.assert_close(fitted.latents(logits) @ fitted.head_.T, logits, rtol=1e-8, atol=1e-8)
    # The head's gradient in the hidden state's basis: an untied copy of the output layer, one backward pass.
    head = model.lm_head.weight.detach().clone().requires_grad_()
    hidden = model.transformer(x[:1]).last_hidden_state.detach()
    nn.functional.cross_entropy((hidden @ head.T)[0, :-1], x[0, 1:]).backward()
    basis = torch.linalg.lstsq(model.lm_head.weight.detach(), fitted.head_).solution  # head_ = W basis
    mine = fitted.gradient(x[:1], torch.ones(1, 12, dtype=torch.bool))[0]
    torch.testing.assert_close(mine, head.grad @ torch.linalg.inv(basis).T, rtol=1e-6, atol=1e-9)
    told = fitted.features(x)
    assert told.shape == (2, 7)
    torch.testing.assert_close(told[0, :3], torch.stack([mine.flatten().norm(p) for p in (math.inf, 1, 2)]))
    with pytest.raises(InputError, match="more queries"):
        ModelStealing().fit(model, tokens(5))


@pytest.mark.parametrize("clf", ["mlp", "mlp-big", "logreg"])
def test_supervised_attack_learns_what_separates(clf: str) -> None:
    rng = torch_rng(0, "separate")
    draw = torch.randn(400, 6, generator=rng)
    inside, outside = draw[:200] + torch.tensor([1.5, 0, 0, 0, 0, 0]), draw[200:]
    inside[3, 2], inside[4, 1] = math.nan, math.inf
    attack = SupervisedMIA(features=lambda x: x, clf=clf, epochs=40)  # type: ignore[arg-type]
    fitted = attack.fit(inside[:150], outside[:150], seed=1)
    scores = torch.cat((fitted.score(inside[150:]), fitted.score(outside[150:])))
    assert roc_auc_score(np.repeat([1, 0], 50), scores) > 0.75
    assert fitted.score(inside[150:153]).allclose(scores[:3], atol=1e-5)
    assert attack.fit(inside[:150], outside[:150], seed=1).score(outside[:9]).equal(fitted.score(outside[:9]))
    with pytest.raises(InputError, match="infinite"):
        fitted.score(inside[4:5])
    with pytest.raises(InputError, match="5 features; expected 6"):
        fitted.score(inside[:3, :5])
    with pytest.raises(InputError, match="expected the same"):
        attack.fit(inside[:, :5], outside)
    with pytest.raises(InputError, match="epochs=0"):
        replace(attack, epochs=0)


def test_supervised_attack_stops_early_and_keeps_the_best_weights() -> None:
    noise = torch.randn(300, 4, generator=torch_rng(0, "noise"))
    short = SupervisedMIA(features=lambda x: x, epochs=300, patience=3, lr=1e-2)
    longer = SupervisedMIA(features=lambda x: x, epochs=600, patience=3, lr=1e-2)
    a, b = (m.fit(noise[:150], noise[150:], seed=0).score(noise) for m in (short, longer))
    assert a.equal(b)
    assert float(a.std()) < 2  # not what 300 epochs on noise would give


def test_rates() -> None:
    y, s = np.repeat([1, 0], [4, 10]), np.array([9.0, 8, 3, 1, 8.5, 5, 4, 2, 0, 0, 0, 0, 0, 0])
    assert tpr_at_fpr(y, s, 0.1) == 0.5
    assert tpr_at_fpr(y, s, 0.3) == 0.75
    assert tpr_at_fpr(y, s, 1.0) == 1.0
    with pytest.raises(InputError, match="1/10"):
        tpr_at_fpr(y, s, 0.01)
    rates = membership_rates(y, s, (0.01, 0.1, 0.3), seed=0)
    assert rates["tpr@0.01"] is None
    assert rates["tpr@0.1"] is not None
    assert rates["auc"] is not None
    assert rates["tpr@0.1"][0] == 0.5
    assert rates["auc"][0] == pytest.approx(roc_auc_score(y, s))
    assert all(low <= value <= high for value, low, high in (rates["auc"], rates["tpr@0.1"]))


def test_extractor_draws_from_the_model_and_ranks_by_the_ratio() -> None:
    ft, base, prefixes = gpt2(1), gpt2(2), tokens(3, 4)
    extractor = FineTuneExtractor(ft, base, prefix_len=4, suffix_len=3, n=5)
    found = extractor.extract(prefixes, seed=0)
    assert found["candidates"].shape == (3, 5, 3)
    whole = torch.cat((prefixes[1].expand(5, -1), found["candidates"][1]), 1)
    torch.testing.assert_close(FLoRaMIA(ft, base).score(whole), found["scores"][1])
    assert found["best"][1].equal(found["candidates"][1, found["scores"][1].argmax()])
    small = FineTuneExtractor(ft, base, prefix_len=4, suffix_len=3, n=5, batch_size=2).extract(prefixes, seed=0)
    assert small["candidates"].equal(found["candidates"])
    assert not extractor.extract(prefixes, seed=1)["candidates"].equal(found["candidates"])
    by_loss = FineTuneExtractor(ft, base, prefix_len=4, suffix_len=3, n=5, ranker="loss").extract(prefixes, seed=0)
    torch.testing.assert_close(by_loss["scores"][1], LossMIA(ft).score(whole))
    # The first token's frequencies are the model's probabilities.
    many = FineTuneExtractor(ft, base, prefix_len=4, suffix_len=1, n=4000, batch_size=4000).candidates(
        prefixes[:1], seed=3
    )
    share = torch.bincount(many.flatten(), minlength=VOCABULARY) / 4000
    with torch.no_grad():
        expected = ft.eval()(prefixes[:1]).logits[0, -1].softmax(0)
    assert float((share - expected).abs().sum()) < 0.1


def test_extractor_continues_what_a_model_knows_by_heart() -> None:
    model = gpt2()
    row = tokens(1, 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(row, labels=row).loss.backward()
        optimizer.step()
    extractor = FineTuneExtractor(model, gpt2(4), prefix_len=5, suffix_len=5, n=4)
    rates = extraction_rates(extractor.extract(row[:, :5], seed=0), row[:, 5:])
    assert rates["precision"] == rates["hamming"] == rates["multi_precision"] == rates["multi_hamming"] == 1


def test_extraction_rates_in_numbers() -> None:
    candidates = torch.tensor([[[1, 2], [1, 3]], [[4, 4], [5, 6]]])
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]], dtype=torch.float64)
    best = torch.tensor([[1, 3], [4, 4]])
    rates = extraction_rates({"best": best, "candidates": candidates, "scores": scores}, torch.tensor([[1, 2], [4, 4]]))
    assert rates == {"precision": 0.5, "hamming": 0.75, "multi_precision": 1.0, "multi_hamming": 1.0, "auc": 0.25}


def test_extractor_refuses_what_it_cannot_use() -> None:
    model = gpt2()
    with pytest.raises(InputError, match="expected no more"):
        FineTuneExtractor(model, model, prefix_len=10, suffix_len=9).extract(tokens(1, 10), seed=0)
    with pytest.raises(InputError, match=r"expected int64 \(b, 4\)"):
        FineTuneExtractor(model, model, prefix_len=4, suffix_len=2).extract(tokens(1, 5), seed=0)
    with pytest.raises(InputError, match="unknown ranker"):
        FineTuneExtractor(model, model, ranker="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown gradient"):
        GradNormMIA(model, where="nowhere")
    with pytest.raises(InputError, match="expected 1, 2 or inf"):
        GradNormMIA(model, p=3)
    with pytest.raises(InputError, match="k=0"):
        MinKMIA(model, k=0)
