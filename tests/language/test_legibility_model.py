"""The model of legibility: what it sees, what it learns, what it leaves alone; and attacks that ask it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from assay.language import (
    FittedLegibility,
    LegibilityModel,
    LegibilityPair,
    LegibleAttack,
    SimilaritySpace,
    VisualPerturber,
    WordRenderer,
    distance_score,
    edit_score,
    parameter_score,
)
from assay.language.encoders import CellEncoder, LegibilityNet, trocr_encoder
from assay.language.legibility_model import pair_scores
from assay.runtime.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PILLOW = WordRenderer(font="pillow", size=24)
TINY = LegibilityModel(renderer=PILLOW, length=8, epochs=4)
PERTURBER = VisualPerturber(SimilaritySpace(k=10, renderer=PILLOW).fit("0123456789!?$%&", sources=LETTERS))


def pairs(n: int, seed: int = 0) -> list[LegibilityPair]:
    """Comparisons of a reader to whom a word is legible where at most half of its characters are changed."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        word = "".join(LETTERS[j] for j in torch.randint(26, (6,), generator=g))
        shares = torch.randint(0, 5, (2,), generator=g) / 4
        a, b = (PERTURBER.perturb(word, 10, float(s), draw=i)[0] for s in shares)
        lost = [sum(c != d for c, d in zip(word, w, strict=True)) for w in (a, b)]
        choice = 3 if min(lost) > 3 else 2 if lost[0] == lost[1] else int(lost[1] < lost[0])
        made.append(LegibilityPair(word, a, b, choice))
    return made


@pytest.fixture(scope="module")
def fitted() -> FittedLegibility:
    return TINY.fit(pairs(400), seed=0)


def test_learns_to_compare_words_that_it_has_not_seen(fitted: FittedLegibility) -> None:
    found = fitted.evaluate(pairs(200, seed=1))
    assert found["rank_accuracy"] > 0.9
    assert found["f1"] > 0.9
    assert found["accuracy"] > 0.85
    assert fitted.rank(["?!$%&0", "a7cdef", "abcdef"], "abcdef") == ["abcdef", "a7cdef", "?!$%&0"]


def test_same_seed_same_scores_and_nothing_else_changes(fitted: FittedLegibility) -> None:
    small = TINY.data(pairs(60))
    x, y = small.x.clone(), small.y.clone()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (pair_scores(TINY.fit_data(small, seed=s).model_, small)[0] for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(small.x, x)
    assert torch.equal(small.y, y)


def test_scores_do_not_depend_on_the_batch(fitted: FittedLegibility) -> None:
    some = pairs(300, seed=2)
    words, originals = [p.first for p in some], [p.original for p in some]
    together = fitted.score(words, originals)
    alone = torch.cat([fitted.score([w], [o]) for w, o in zip(words[:20], originals[:20], strict=True)])
    assert torch.allclose(together[:20], alone, atol=1e-5)
    assert together.shape == (300,)


def test_pictures_are_the_corrupted_word_over_the_original() -> None:
    shown = TINY.pictures(["w0rd"], ["word"])
    drawn = WordRenderer(font="pillow", size=TINY.cell)
    assert shown.shape == (1, 2, 12, 96)
    assert torch.equal(shown[0, 0], drawn.cells(["w0rd"], 8)[0])
    assert torch.equal(shown[0, 1], drawn.cells(["word"], 8)[0])
    released = LegibilityModel(backbone=nn.Flatten(), side=24, renderer=PILLOW).pictures(["w0rd"] * 2, ["word"] * 2)
    assert released.shape == (2, 3, 24, 24)
    assert released.min() >= 0
    assert released.max() == 1


def test_tokens_are_averaged_and_their_places_do_not_matter() -> None:
    net = LegibilityNet(CellEncoder(4, 8), 8)
    x = torch.rand(5, 2, 4, 12, generator=torch.Generator().manual_seed(0))
    turned = torch.cat((x[..., 8:], x[..., :8]), -1)
    assert torch.allclose(net(x), net(turned), atol=1e-6)
    assert torch.allclose(net(x), net.stack(net.model(x).mean(1))[:, 0])


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, 8)
        self.seen: list[tuple[float, float]] = []

    def forward(self, x: Tensor) -> SimpleNamespace:
        self.seen.append((float(x.min()), float(x.max())))
        return SimpleNamespace(last_hidden_state=self.patch(x).flatten(2).transpose(1, 2))


def test_any_encoder_of_the_released_picture_can_be_trained_and_is_not_changed() -> None:
    encoder = _Transformer()
    before = [p.clone() for p in encoder.parameters()]
    method = LegibilityModel(backbone=encoder, side=16, renderer=PILLOW, epochs=1, lr=1e-2)
    found = method.fit(pairs(30), seed=0)
    assert torch.isfinite(found.score(["w0rd"], ["word"])).all()
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    seen = found.model_.model.seen  # type: ignore[union-attr]
    assert -1 <= min(low for low, _ in seen) < 0  # type: ignore[union-attr]
    assert not torch.equal(found.model_.model.patch.weight, encoder.patch.weight)  # type: ignore[union-attr,arg-type]


def test_a_text_model_reads_bytes_and_learns_characters_that_it_has_seen() -> None:
    method = LegibilityModel(backbone="bytes", length=8, epochs=6)
    shown = method.pictures(["wo\u00e9d"], ["word"])
    assert shown.shape == (1, 1, 1, 66)
    assert bytes((shown * 255).round().byte()[0, 0, 0].tolist()).rstrip(b"\0") == "wo\u00e9d  word".encode()
    assert method.fit(pairs(500), seed=0).evaluate(pairs(200, seed=1))["rank_accuracy"] > 0.9
    with pytest.raises(InputError, match="bytes"):
        method.pictures(["a" * 40], ["a" * 40])


def test_encoder_of_a_trocr_checkpoint(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'hf')")
    seen = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=16
    )
    read = transformers.TrOCRConfig(
        d_model=8, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8, vocab_size=11
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, read)
    whole = transformers.VisionEncoderDecoderModel(config)
    whole.save_pretrained(tmp_path)
    encoder = trocr_encoder(str(tmp_path))
    method = LegibilityModel(backbone=encoder, side=32, renderer=PILLOW)
    x = method.pictures(["w0rd"], ["word"])
    net = method.net(seed=0).eval()
    expected = net.stack(whole.encoder.eval()(2 * x - 1).last_hidden_state.mean(1))[:, 0]
    assert torch.allclose(net(x), expected, atol=1e-5)
    with pytest.raises(InputError, match="cannot be loaded"):
        trocr_encoder(str(tmp_path / "nothing"))


def test_trocr_without_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="extra 'hf'"):
        LegibilityModel(backbone="trocr").net(seed=0)


def test_the_epoch_of_highest_f1_on_validation_pairs_stays() -> None:
    train, valid = TINY.data(pairs(104)), TINY.data(pairs(100, seed=3))
    best = TINY.fit_data(train, seed=0, valid=valid)
    every = [
        FittedLegibility(TINY, LegibilityModel(renderer=PILLOW, length=8, epochs=e).fit_data(train, seed=0).model_)
        for e in range(1, TINY.epochs + 1)
    ]
    f1 = [e.evaluate(pairs(100, seed=3))["f1"] for e in every]
    assert best.evaluate(pairs(100, seed=3))["f1"] == max(f1)


def test_baselines_by_hand() -> None:
    made = [PERTURBER.perturb("word", 5, n)[1] for n in (0.0, 0.5, 1.0)]
    assert parameter_score(made).tolist() == [0.0, -2.5, -5.0]
    assert edit_score(made).tolist() == [0.0, -2.0, -4.0]
    expected = [-sum(s.distance for s in p.substitutions) / 4 for p in made]
    assert distance_score(made).tolist() == pytest.approx(expected)
    assert distance_score(made)[2] < distance_score(made)[0] == 0


def test_attack_takes_the_most_legible_or_the_most_harmful_of_the_legible(fitted: FittedLegibility) -> None:
    attack = LegibleAttack(perturber=PERTURBER, model=fitted, ks=(1, 5), ns=(0.5, 1.0), draws=3)
    words = attack.candidates("abcdef")
    scores = dict(zip(words, fitted.score(words, ["abcdef"] * len(words)).tolist(), strict=True))
    assert "abcdef" not in words
    assert len(set(words)) == len(words) > 4
    legible = {w for w, s in scores.items() if s > 0}
    assert 0 < len(legible) < len(words)
    assert attack.perturb("abcdef") == max(scores, key=lambda w: scores[w])

    def harm(some: list[str]) -> Tensor:
        return torch.tensor([-scores[w] for w in some])

    assert attack.perturb("abcdef", harm) == min(legible, key=lambda w: scores[w])
    worst = attack.perturb("abcdef", lambda some: torch.full((len(some),), torch.inf))
    assert worst in legible
    strict = LegibleAttack(perturber=PERTURBER, model=fitted, ks=(5,), threshold=1e6)
    assert strict.perturb("abcdef") == "abcdef"
    assert LegibleAttack(perturber=PERTURBER, model=fitted, ks=(5,), ns=(0.0,)).perturb("abcdef") == "abcdef"


def test_bad_input(fitted: FittedLegibility) -> None:
    wide = LegibilityModel(backbone=nn.Identity(), side=8, renderer=PILLOW)
    for bad in (
        lambda: TINY.fit([], seed=0),
        lambda: TINY.fit([LegibilityPair("a", "b", "c", 4)], seed=0),
        lambda: TINY.fit([LegibilityPair("a", "", "c", 0)], seed=0),
        lambda: wide.fit(pairs(3), seed=0),
        lambda: fitted.score([], []),
        lambda: fitted.score(["a"], ["a", "b"]),
        lambda: fitted.score([""], ["a"]),
        lambda: fitted.score(["a" * 9], ["a"]),
        lambda: LegibilityModel(backbone="huge"),  # type: ignore[arg-type]
        lambda: LegibilityModel(cell=0),
        lambda: edit_score([]),
        lambda: LegibleAttack(perturber=PERTURBER, model=fitted, ks=()),
        lambda: LegibleAttack(perturber=PERTURBER, model=fitted, ks=(5,)).perturb("abc", lambda w: torch.zeros(1, 1)),
    ):
        with pytest.raises(InputError):
            bad()
