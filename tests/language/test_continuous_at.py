"""Replies, the attack on embeddings, GCG, and both losses against formulas by hand, on a small GPT-2."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.language import (
    GCG,
    CAdvIPO,
    CAdvUL,
    EmbeddingAttack,
    Replies,
    complies,
    preference_loss,
    reply_logits,
    token_logps,
)
from assay.language.cadv_ul import bounded, placed
from assay.language.rmu import activations
from assay.papers.continuous_at import network
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng

pytest.importorskip("transformers")

PROMPTS = [[4, 10, 11, 12, 2, 2], [5, 12, 10, 11, 2, 2], [6, 13, 0, 10, 2, 2]]
HARMFUL = Replies.of(PROMPTS, [[10, 0, 12], [11, 10], [13, 10, 11]])
SAFE = Replies.of(PROMPTS, [[3], [3, 3], [3]])


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network(16, 1, seed=0)


def hand_logps(net: nn.Module, batch: Replies, delta: Tensor | None = None) -> list[list[float]]:
    """Log-probabilities of the targets, one row and one token at a time, without padding."""
    table, found = net.get_input_embeddings(), []  # type: ignore[operator]
    for i, (ids, labels) in enumerate(zip(batch.ids, batch.labels, strict=True)):
        length = int(batch.attention[i].sum())
        e = table(ids[None, :length]) + (0 if delta is None else delta[i : i + 1, :length])
        logp = net(inputs_embeds=e).logits[0].log_softmax(1)
        found.append([float(logp[t - 1, ids[t]].detach()) for t in range(length) if labels[t] != -100])
    return found


def test_log_probabilities_token_by_token_without_padding(net: nn.Module) -> None:
    logits, by_hand = reply_logits(net, HARMFUL), hand_logps(net, HARMFUL)
    assert [len(r) for r in by_hand] == [3, 2, 3]
    assert token_logps(logits, HARMFUL.labels).tolist() == pytest.approx([sum(r) / len(r) for r in by_hand], abs=1e-5)
    total = token_logps(logits, HARMFUL.labels, average=False).tolist()
    assert total == pytest.approx([sum(r) for r in by_hand], abs=1e-5)
    with pytest.raises(InputError, match="without a target"):
        token_logps(logits, torch.full_like(HARMFUL.labels, -100))


def padded_left(batch: Replies) -> Replies:
    gaps = (~batch.attention).sum(1).tolist()
    parts = ([row.roll(gap) for row, gap in zip(t, gaps, strict=True)] for t in (batch.ids, batch.labels))
    return Replies(*(torch.stack(p) for p in parts), batch.attention.flip(1))


def test_the_side_of_the_padding_does_not_matter(net: nn.Module) -> None:
    other = padded_left(HARMFUL)
    assert not other.attention[:, 0].all()
    expected = token_logps(reply_logits(net, HARMFUL), HARMFUL.labels)
    torch.testing.assert_close(token_logps(reply_logits(net, other), other.labels), expected)
    states = [activations(net, "transformer.h.0", b)[b.targets] for b in (HARMFUL, other)]
    torch.testing.assert_close(*states)
    attack, gcg = EmbeddingAttack(eps=0.3, steps=3, lr=0.01), GCG(suffix=2, steps=2, topk=5, candidates=8)
    torch.testing.assert_close(attack.attack(net, other)[other.prompt], attack.attack(net, HARMFUL)[HARMFUL.prompt])
    assert gcg.attack(net, other, seed=0)[other.attention].equal(gcg.attack(net, HARMFUL, seed=0)[HARMFUL.attention])


def test_half_precision_keeps_the_digits_of_long_replies(net: nn.Module) -> None:
    half = copy.deepcopy(net).bfloat16()
    long = Replies.of([[4, 10]], [[10, 0, 12, 11, 13, 5, 6, 4, 3]])
    logits = reply_logits(half, long)
    found = token_logps(logits, long.labels, average=False)
    torch.testing.assert_close(found, token_logps(logits.float(), long.labels, average=False), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"optimizer": "rmsprop"}, {"eps": 0.0}])
def test_float16_attacks_are_finite_and_in_the_ball(net: nn.Module, options: dict[str, Any]) -> None:
    attack = EmbeddingAttack(**{"eps": 0.3, "steps": 3, "lr": 0.01, **options})
    half = copy.deepcopy(net).half()
    delta = attack.attack(half, HARMFUL)
    assert delta.dtype == torch.float16
    assert delta.norm(dim=2).max() <= attack.radius(half) * 1.01 + 1e-3
    assert (delta.abs().sum() > 0) == (attack.eps > 0)


def test_complying_is_what_greedy_decoding_says(net: nn.Module) -> None:
    said = []
    for p in PROMPTS:
        ids = list(p)
        for _ in range(2):
            ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
        said.append(ids[len(p) :])
    assert complies(net, Replies.of(PROMPTS, said)).all()
    other = [[r[0], (r[1] + 1) % 20] for r in said]
    assert not complies(net, Replies.of(PROMPTS, other)).any()


@pytest.mark.parametrize("optimizer", ["sign", "adam", "rmsprop"])
def test_delta_stays_on_the_prompt_and_in_the_ball_and_helps(net: nn.Module, optimizer: Any) -> None:
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    attack = EmbeddingAttack(eps=0.3, steps=8, lr=0.01, optimizer=optimizer)
    delta = attack.attack(net, HARMFUL)
    radius = 0.3 * float(net.get_input_embeddings().weight.detach().norm(dim=1).mean())  # type: ignore[operator]
    assert attack.radius(net) == pytest.approx(radius)
    assert float(delta.norm(dim=2).max()) <= radius + 1e-6
    assert not delta[~HARMFUL.prompt].any()
    assert delta[HARMFUL.prompt].any(1).all()
    gain = token_logps(reply_logits(net, HARMFUL, delta), HARMFUL.labels) - token_logps(
        reply_logits(net, HARMFUL), HARMFUL.labels
    )
    assert float(gain.detach().min()) > 0
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert attack.attack(net, HARMFUL).equal(delta)
    rows = torch.cat([attack.attack(net, HARMFUL[i : i + 1]) for i in range(3)])
    if optimizer == "sign":
        torch.testing.assert_close(rows, delta, atol=1e-5, rtol=0)


def test_first_steps_of_the_optimisers_against_torch(net: nn.Module) -> None:
    e = net.get_input_embeddings()(HARMFUL.ids).detach()  # type: ignore[operator]
    makers: dict[str, Any] = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    for name, maker in makers.items():
        delta = torch.zeros_like(e, requires_grad=True)
        optimizer = maker([delta], lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            out = net(inputs_embeds=e + delta, attention_mask=HARMFUL.attention.long()).logits
            (-token_logps(out, HARMFUL.labels).sum()).backward(inputs=[delta])
            assert delta.grad is not None
            delta.grad *= HARMFUL.prompt[..., None]
            optimizer.step()
        found = EmbeddingAttack(eps=100.0, steps=3, lr=1e-3, optimizer=name).attack(net, HARMFUL)  # type: ignore[arg-type]
        torch.testing.assert_close(found, delta.detach(), atol=2e-5, rtol=0)


def test_the_suffix_alone_moves_and_absolute_radii(net: nn.Module) -> None:
    attack = EmbeddingAttack(eps=0.01, relative_eps=False, steps=3, lr=0.1, location="suffix", suffix=2)
    delta = attack.attack(net, HARMFUL)
    assert delta.any(2).nonzero().tolist() == [[i, t] for i in range(3) for t in (4, 5)]
    assert float(delta.norm(dim=2).max()) == pytest.approx(0.01, rel=1e-4)


def test_gcg_finds_the_best_of_all_single_substitutions(net: nn.Module) -> None:
    """With every token a substitute and very many candidates, one round is an exhaustive search."""
    batch = HARMFUL[:1]
    found = GCG(suffix=2, steps=1, topk=26, candidates=2000).attack(net, batch, seed=0)
    tries = []
    for place, token in itertools.product((4, 5), range(26)):
        ids = batch.ids.clone()
        ids[0, place] = token
        rows = Replies(ids, batch.labels, batch.attention)
        tries.append((float(token_logps(reply_logits(net, rows), rows.labels).detach()), ids))
    value, best = max(tries, key=lambda t: t[0])
    rows = Replies(found, batch.labels, batch.attention)
    assert float(token_logps(reply_logits(net, rows), rows.labels).detach()) == pytest.approx(value, abs=1e-6)
    assert found.equal(best)


def test_gcg_changes_the_suffix_only_never_gets_worse_and_keeps_to_what_is_allowed(net: nn.Module) -> None:
    gcg = GCG(suffix=2, steps=4, topk=4, candidates=8, allowed=9)
    ids, again = (gcg.attack(net, HARMFUL, seed=1) for _ in range(2))
    assert ids.equal(again)
    changed = (ids != HARMFUL.ids).nonzero()[:, 1].tolist()
    assert set(changed) <= {4, 5}
    assert int(ids[:, 4:6].max()) < 9
    rows = Replies(ids, HARMFUL.labels, HARMFUL.attention)
    gain = token_logps(reply_logits(net, rows), rows.labels) - token_logps(reply_logits(net, HARMFUL), HARMFUL.labels)
    assert float(gain.detach().min()) >= 0
    torch.testing.assert_close(replace(gcg, batch_size=5).attack(net, HARMFUL, seed=1), ids)
    with pytest.raises(InputError, match="expected more than 6"):
        GCG(suffix=6, steps=1).attack(net, HARMFUL, seed=0)


def test_cutoffs_leave_a_slope_of_a_thousandth() -> None:
    for continuous, jump in ((False, -0.005), (True, 0.0)):
        values = torch.tensor([-4.0, -5.0 + 1e-6, -5.0 - 1e-6, -7.0], dtype=torch.float64, requires_grad=True)
        out = torch.stack([bounded(v, -5.0, continuous) for v in values])
        assert torch.autograd.grad(out.sum(), values)[0].tolist() == [1.0, 1.0, 0.001, 0.001]
        assert float((out[2] - out[1]).detach()) == pytest.approx(jump, abs=1e-5)


def test_losses_of_unlikelihood_by_hand(net: nn.Module) -> None:
    method = CAdvUL(attack=EmbeddingAttack(eps=0.3, steps=4, lr=0.01), away_weight=0.3, toward_weight=0.4)
    found = method.losses(net, (SAFE, HARMFUL), HARMFUL[:2])
    delta = method.attack.attack(net, HARMFUL)
    away, toward = hand_logps(net, HARMFUL, delta), hand_logps(net, SAFE, placed(delta, SAFE))
    mean = [sum(sum(r) / len(r) for r in rows) / 3 for rows in (away, toward)]
    utility = -sum(sum(r) / len(r) for r in hand_logps(net, HARMFUL[:2])) / 2
    assert float(found["away"].detach()) == pytest.approx(mean[0], abs=1e-5)
    assert float(found["toward"].detach()) == pytest.approx(-mean[1], abs=1e-5)
    assert float(found["utility"].detach()) == pytest.approx(utility, abs=1e-5)
    loss = 0.3 * mean[0] - 0.4 * mean[1] + utility
    assert float(found["loss"].detach()) == pytest.approx(loss, abs=1e-5)


def test_the_other_away_loss_drops_unlikely_tokens(net: nn.Module) -> None:
    rows = hand_logps(net, HARMFUL)
    cut = sorted(itertools.chain(*rows))[3] + 1e-6
    found = CAdvUL(away_loss="log1mp", away_cutoff=cut).away(reply_logits(net, HARMFUL), HARMFUL)
    kept = [-torch.log1p(-torch.tensor(p).exp()) for p in itertools.chain(*rows) if p >= cut]
    assert len(kept) == 4
    assert float(found.detach()) == pytest.approx(float(sum(kept)) / 8, abs=1e-5)


def test_preference_losses_against_their_formulas() -> None:
    g = torch_rng(0, "pairs")
    chosen, rejected = torch.randn(2, 6, generator=g, dtype=torch.float64)
    gap, beta = chosen - rejected, 0.25
    assert preference_loss("ipo", chosen, rejected, beta).allclose((gap - 2.0) ** 2)
    assert preference_loss("sigmoid", chosen, rejected, beta).allclose(F.softplus(-beta * gap))
    assert preference_loss("hinge", chosen, rejected, beta).allclose((1 - beta * gap).clamp_min(0))
    kl = [max(float(v.mean()), 0.0) for v in (chosen, rejected)]
    pair = torch.cat((1 - (beta * (chosen - kl[1])).sigmoid(), 1 - (beta * (kl[0] - rejected)).sigmoid()))
    assert float(preference_loss("kto_pair", chosen, rejected, beta).mean()) == pytest.approx(float(pair.mean()))
    with pytest.raises(InputError, match="other"):
        preference_loss("other", chosen, rejected, beta)


def test_the_loss_of_preferences_by_hand(net: nn.Module) -> None:
    rows = sorted(itertools.chain(*hand_logps(net, HARMFUL)))
    method = CAdvIPO(attack=EmbeddingAttack(eps=0.3, steps=4, lr=0.01), logp_floor=rows[1], beta=0.5)
    reference = method.reference(net, SAFE, HARMFUL)
    found = method.losses(net, SAFE, HARMFUL, reference)["loss"]
    delta = method.attack.attack(net, HARMFUL)

    def masked(values: list[list[float]]) -> Tensor:
        return torch.tensor([sum(v for v in r if v >= rows[1]) / len(r) for r in values])

    plus = torch.tensor([sum(r) / len(r) for r in hand_logps(net, SAFE, placed(delta, SAFE))])
    before = torch.tensor([sum(r) / len(r) for r in hand_logps(net, SAFE)])
    torch.testing.assert_close(reference, torch.stack((before, masked(hand_logps(net, HARMFUL))), 1), atol=1e-5, rtol=0)
    minus = masked(hand_logps(net, HARMFUL, delta))
    by_hand = ((plus - minus) - (reference[:, 0] - reference[:, 1]) - 1.0).square().mean()
    assert float(found.detach()) == pytest.approx(float(by_hand), abs=1e-4)


def test_training_changes_a_copy_the_same_way_again(net: nn.Module) -> None:
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    attack = EmbeddingAttack(eps=0.2, steps=2, lr=0.01)
    runs = [
        CAdvUL(attack=attack, epochs=3, lr=1e-2, batch_size=8).fit(net, SAFE, HARMFUL, HARMFUL, seed=s)
        for s in (0, 0, 1)
    ]
    ipo = CAdvIPO(attack=attack, epochs=15, lr=1e-2, batch_size=2).fit(net, SAFE, HARMFUL, seed=0)
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert torch.get_rng_state().equal(state)
    weights = [r.transformer.wte.weight for r in runs]  # type: ignore[union-attr]
    assert weights[0].equal(weights[1])  # type: ignore[operator]
    assert not weights[0].equal(weights[2])  # type: ignore[operator]
    safer = token_logps(reply_logits(ipo, SAFE), SAFE.labels) - token_logps(reply_logits(ipo, HARMFUL), HARMFUL.labels)
    first = token_logps(reply_logits(net, SAFE), SAFE.labels) - token_logps(reply_logits(net, HARMFUL), HARMFUL.labels)
    assert float((safer - first).detach().min()) > 0.5


def test_an_eighth_of_the_rows_are_adversarial() -> None:
    data = CAdvUL().schedule_of(70, 33, 0.125, 0)
    assert float(data.y.double().mean()) == pytest.approx(0.125)
    assert data.fields["row"][data.y == 1].tolist() == list(range(70))
    assert int(data.fields["row"][data.y == 0].max()) < 33


def test_what_is_refused(net: nn.Module) -> None:
    for options in ({"eps": -1.0}, {"lr": 0.0}, {"optimizer": "other"}, {"location": "other"}):
        with pytest.raises(InputError):
            EmbeddingAttack(**options)
    with pytest.raises(InputError, match="no input embeddings"):
        EmbeddingAttack().attack(nn.Linear(2, 2), HARMFUL)
    with pytest.raises(InputError, match="other prompts"):
        CAdvUL().fit(net, Replies.of([p[::-1] for p in PROMPTS], [[3]] * 3), HARMFUL, HARMFUL, seed=0)
    with pytest.raises(InputError, match="without a target"):
        Replies(HARMFUL.ids, torch.full_like(HARMFUL.labels, -100), HARMFUL.attention)
    with pytest.raises(InputError, match="without a prompt"):
        Replies.of([[]], [[1]])
    with pytest.raises(InputError, match="without a prompt"):
        Replies(torch.tensor([[0, 5]]), torch.tensor([[-100, 5]]), torch.tensor([[False, True]]))
    with pytest.raises(InputError, match="is padding"):
        Replies(torch.tensor([[4, 5]]), torch.tensor([[-100, 5]]), torch.tensor([[True, False]]))
    with pytest.raises(InputError, match="expected bool"):
        Replies(HARMFUL.ids, HARMFUL.labels, HARMFUL.attention.long())
    with pytest.raises(InputError, match="beta"):
        CAdvIPO(beta=0.0)
    with pytest.raises(InputError, match="away_loss"):
        CAdvUL(away_loss="other")  # type: ignore[arg-type]
