"""Captioners: causal, greedy as their logits say, and trainable; the same of transformers where it is installed."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import Tensor

from assay.attacks import EncoderAttack
from assay.data import Batch, Data
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng
from assay.training import Plan, State, fit
from assay.vision import Captioner, HFCaptioner, TinyCaptioner, TinyViT

WORDS = ("dark", "light", "left", "right")
HF = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers (assay[hf])")
KINDS = [TinyCaptioner, pytest.param(HFCaptioner, marks=HF)]


def made(cls: type[Captioner], seed: int = 0) -> Captioner:
    with seeded(seed, "init"):
        return cls(WORDS, 3, (1, 8, 8), 4, 16, 1, 2)  # type: ignore[call-arg, arg-type]


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch_rng(1, "images"))


@pytest.mark.parametrize("cls", KINDS)
def test_logits_depend_on_earlier_tokens_and_the_image_only(cls: type[Captioner]) -> None:
    model, x = made(cls).eval(), images()
    tokens = torch.tensor([[4, 0, 1, 2]]).expand(5, 4)
    with torch.no_grad():
        logits, other = model(x, tokens), model(x, torch.tensor([[4, 0, 3, 3]]).expand(5, 4))
        short, dark = model(x, tokens[:, :2]), model(x * 0, tokens)
    assert logits.shape == (5, 4, 6)
    torch.testing.assert_close(logits[:, :2], other[:, :2])
    torch.testing.assert_close(logits[:, :2], short)
    assert (logits[:, 2:] - other[:, 2:]).abs().max() > 1e-4
    assert (logits - dark).abs().max() > 1e-4


@pytest.mark.parametrize("cls", KINDS)
def test_captions_are_greedy_and_closed(cls: type[Captioner]) -> None:
    for seed in range(6):
        model, x = made(cls, seed), images()
        found, random = model.caption(x), torch.get_rng_state()
        assert found.equal(model.caption(x, batch_size=2))
        assert torch.get_rng_state().equal(random)
        assert found.shape == (5, 4)
        with torch.no_grad():
            logits = model.eval()(x, torch.cat((torch.full((5, 1), model.start), found[:, :-1]), 1))
        over = (found == model.end).cumsum(1).bool()
        late = torch.cat((torch.zeros(5, 1, dtype=torch.bool), over[:, :-1]), 1)
        usual = found != model.start  # where the start token itself is the likeliest, captions close
        assert (found == logits.argmax(2))[~late & usual & ~over].all()
        assert (found[late] == model.end).all()


def test_text_and_tokens() -> None:
    model = made(TinyCaptioner)
    tokens = model.tokens(["dark left", "", "light right dark"])
    assert tokens.tolist() == [[0, 2, 5, 5], [5, 5, 5, 5], [1, 3, 0, 5]]
    assert model.text(tokens) == ["dark left", "", "light right dark"]
    assert model.text(torch.tensor([[4, 1, 5, 0]])) == ["light"]
    with pytest.raises(InputError, match="unknown word 'darc'; did you mean 'dark'"):
        model.tokens(["darc"])
    with pytest.raises(InputError, match="at most 3"):
        model.tokens(["dark dark dark dark"])


def test_bad_input() -> None:
    for words, length in (((), 3), (("a", "a"), 3), (("a",), 0)):
        with pytest.raises(InputError, match="distinct words"):
            TinyCaptioner(words, length)
    with pytest.raises(InputError, match="multiples of patch"):
        TinyViT((1, 10, 8), 4)
    model = made(TinyCaptioner)
    for call in (
        lambda: model.caption(images()[0]),
        lambda: model.caption(images(0)),
        lambda: model.caption(images(), beams=0),
    ):
        with pytest.raises(InputError, match="expected \\(n, ch, h, w\\)"):
            call()
    with pytest.raises(InputError, match="greedily"):
        model.caption(images(), beams=2)


@pytest.mark.parametrize("cls", KINDS)
def test_learns_to_describe(cls: type[Captioner]) -> None:
    g = torch_rng(2, "scenes")
    bright, side = torch.randint(2, (2, 400), generator=g)
    x = 0.2 * torch.rand(400, 1, 8, 8, generator=g)
    for k in (0, 1):
        x[side == k, :, :, 4 * k : 4 * k + 4] += 0.3 + 0.4 * bright[side == k][:, None, None, None]
    model = made(cls)
    texts = [f"{WORDS[b]} {WORDS[2 + s]}" for b, s in zip(bright.tolist(), side.tolist(), strict=True)]
    data = Data(x, bright, ("dark", "light"), fields={"caption": model.tokens(texts)})

    def objective(net: torch.nn.Module, batch: Batch, state: State) -> Tensor:
        return net.loss(batch.x, batch.fields["caption"])  # type: ignore[operator]

    trained = fit(model, data[:300], objective, Plan(epochs=25, batch_size=50, lr=5e-3), seed=0)
    assert isinstance(trained, Captioner)
    assert (trained.caption(x[300:]) == data.fields["caption"][300:]).all(1).float().mean() >= 0.95


def test_missing_transformers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        InputError, match=r"transformers is missing; expected it installed \(pip install 'assay\[hf\]'\)"
    ):
        made(HFCaptioner)


@HF
def test_attack_on_the_whole_model_is_that_on_its_encoder() -> None:
    """The same weights by the model of transformers, by its encoder, and by a plain function of its parts."""
    model, x = made(HFCaptioner), images()
    attack = EncoderAttack(eps=0.2, steps=20, c=0.01)

    class Direct(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = model.get_submodule("model.encoder")

        def forward(self, z: Tensor) -> Tensor:
            hidden = self.vit(pixel_values=z).last_hidden_state[:, 0]
            pooler = self.vit.get_submodule("pooler.dense")
            return (hidden @ pooler.weight.T + pooler.bias).tanh()

    whole = attack(model, x, x.flip(0), seed=0)
    assert whole.equal(attack(model.get_submodule("model"), x, x.flip(0), seed=0))
    assert whole.equal(attack(model.get_submodule("model.encoder"), x, x.flip(0), seed=0))
    torch.testing.assert_close(whole, attack(Direct(), x, x.flip(0), seed=0), rtol=0, atol=1e-4)


@HF
def test_beams_find_captions_as_likely_as_the_greedy_ones() -> None:
    model, x = made(HFCaptioner, 3), images()

    def likelihood(tokens: Tensor) -> Tensor:
        opened = torch.cat((torch.full((5, 1), model.start), tokens[:, :-1]), 1)
        with torch.no_grad():
            logs = model.eval()(x, opened).log_softmax(2).gather(2, tokens[..., None])[..., 0]
        late = (tokens == model.end).cumsum(1) > 1
        return logs.masked_fill(late, 0).sum(1)

    greedy, wide = model.caption(x), model.caption(x, beams=4)
    full = ~((greedy == model.end) | (wide == model.end)).any(1)  # shorter ones are compared by length
    assert (likelihood(wide)[full] >= likelihood(greedy)[full] - 1e-5).all()
