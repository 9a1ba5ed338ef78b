"""Neighbours by a second implementation, ties, and what a perturbation changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from assay.language import FittedSpace, SimilaritySpace, VisualPerturber, WordRenderer
from assay.runtime.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?$%&@"
PILLOW = WordRenderer(font="pillow", size=24)


def space(k: int = 10, **options: object) -> FittedSpace:
    return SimilaritySpace(k=k, renderer=PILLOW, **options).fit(OTHERS, sources=LETTERS)  # type: ignore[arg-type]


SPACE = space()


def test_neighbours_are_those_of_scipy() -> None:
    pictures = [PILLOW.glyphs(part).flatten(1).double().numpy() for part in (LETTERS, OTHERS)]
    distance = cdist(*pictures, "cosine")
    for row, letter in enumerate(LETTERS):
        chars, found = SPACE.neighbors(letter, 10)
        assert chars[0] == letter
        assert found[0] == 0
        assert np.allclose(found[1:], np.sort(distance[row])[:10], atol=1e-9)
        assert np.allclose([distance[row, OTHERS.index(c)] for c in chars[1:]], found[1:], atol=1e-9)


def test_a_character_is_its_own_first_neighbour_also_among_twins() -> None:
    same = SimilaritySpace(features=lambda x: torch.ones(len(x), 2), k=3, renderer=PILLOW).fit("abcdef")
    assert same.neighbors("d")[0] == ["d", "a", "b", "c"]
    assert same.neighbors("b")[0] == ["b", "a", "c", "d"]
    assert same.neighbors("b")[1].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-12)


def test_features_may_be_any_function_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = space(features=lambda x: x.flatten(1))
    monkeypatch.setattr("assay.language.similarity_space.BLOCK", 7)
    blocked = space()
    for other in (pixels, blocked):
        assert torch.equal(SPACE.neighbors_, other.neighbors_)
        assert torch.allclose(SPACE.distances_, other.distances_, atol=1e-12)


def test_code_points_and_repeats_are_taken() -> None:
    codes = SimilaritySpace(k=10, renderer=PILLOW).fit([ord(c) for c in OTHERS + OTHERS], sources=LETTERS)
    assert torch.equal(codes.neighbors_, SPACE.neighbors_)


def test_what_is_not_drawn_is_left_out_or_refused() -> None:
    lost = OTHERS + "\u0301\u0436 "
    assert torch.equal(SimilaritySpace(k=10, renderer=PILLOW).fit(lost, sources=LETTERS).neighbors_, SPACE.neighbors_)
    with pytest.raises(InputError, match=r"U\+0301"):
        SimilaritySpace(k=10, renderer=PILLOW, missing="raise").fit(lost)


@settings(deadline=None, max_examples=60)
@given(
    word=st.text(LETTERS, min_size=1, max_size=12),
    k=st.integers(1, 10),
    n=st.floats(0, 1),
    seed=st.integers(0, 5),
    draw=st.integers(0, 3),
)
def test_exactly_the_share_of_characters_changes(word: str, k: int, n: float, seed: int, draw: int) -> None:
    new, record = VisualPerturber(SPACE, seed).perturb(word, k, n, draw=draw)
    changed = [i for i, (a, b) in enumerate(zip(word, new, strict=True)) if a != b]
    assert len(changed) == int(len(word) * n) == len(record.substitutions)
    assert record.unchanged == (new == word)
    assert sorted(s.at for s in record.substitutions) == changed
    for s in record.substitutions:
        chars, distances = SPACE.neighbors(s.old, k)
        assert 1 <= s.rank <= k
        assert (word[s.at], new[s.at]) == (s.old, s.new)
        assert (chars[s.rank], float(distances[s.rank])) == (s.new, s.distance)
    assert VisualPerturber(SPACE, seed).perturb(word, k, n, draw=draw) == (new, record)


def test_ranks_and_places_are_uniform() -> None:
    perturber = VisualPerturber(SPACE)
    made = [perturber.perturb("abcdefgh", 4, 0.5, draw=d)[1] for d in range(1000)]
    ranks = np.bincount([s.rank for p in made for s in p.substitutions], minlength=5)[1:]
    places = np.bincount([s.at for p in made for s in p.substitutions], minlength=8)
    assert np.abs(ranks / 4000 - 1 / 4).max() < 0.03
    assert np.abs(places / 4000 - 1 / 8).max() < 0.03


def test_seeds_and_draws_differ_and_nothing_global_moves() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    made = {VisualPerturber(SPACE, s).perturb("legible", 10, 1.0, draw=d)[0] for s in range(3) for d in range(3)}
    assert len(made) == 9
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())


def test_characters_outside_the_space() -> None:
    with pytest.raises(InputError, match="not in the space"):
        VisualPerturber(SPACE).perturb("a-b")
    new, record = VisualPerturber(SPACE, missing="skip").perturb("a-b", 5, 1.0)
    assert new[1] == "-"
    assert len(record.substitutions) == 2
    assert VisualPerturber(SPACE, missing="skip").perturb("---", 5, 1.0)[1].unchanged


def test_bad_input() -> None:
    perturber = VisualPerturber(SPACE)
    for bad in (
        lambda: perturber.perturb(""),
        lambda: perturber.perturb("word", 11),
        lambda: perturber.perturb("word", 0),
        lambda: perturber.perturb("word", 5, 1.01),
        lambda: perturber.perturb("word", 5, -0.1),
        lambda: perturber.perturb("word", 5, float("nan")),
        lambda: SPACE.neighbors("ж"),
        lambda: SPACE.neighbors("a", 11),
        lambda: SimilaritySpace(k=0),
        lambda: SimilaritySpace(features="pixels"),  # type: ignore[arg-type]
        lambda: SimilaritySpace(missing="drop"),  # type: ignore[arg-type]
        lambda: VisualPerturber(SPACE, missing="drop"),  # type: ignore[arg-type]
        lambda: SimilaritySpace(k=50, renderer=PILLOW).fit("abc"),
        lambda: space(features=lambda x: x),
    ):
        with pytest.raises(InputError):
            bad()
