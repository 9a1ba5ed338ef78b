"""The exact parts of the legibility paper: the machine that reads, what it prefers, and disjoint test sets."""

import numpy as np
import pytest

from assay.papers import legit as paper

FONT = "pillow"


def test_reader_reads_what_is_written_and_nothing_else() -> None:
    quiet = paper.Reader(FONT, noise=0.0)
    words = list(paper.words())
    assert (quiet.frequency(words, words, 0) == paper.READS).all()
    others = [w[:-2] + "".join("q" if c != "q" else "z" for c in w[-2:]) for w in words]
    assert (quiet.frequency(others, words, 0) == 0).all()


def test_one_wrong_letter_is_corrected_where_no_other_word_is_as_near() -> None:
    quiet = paper.Reader(FONT, noise=0.0)
    assert quiet.frequency(["qlready", "qlreadq"], ["already"] * 2, 0).tolist() == [paper.READS, 0]
    assert quiet.frequency(["thq" + "n"], ["then"], 0)[0] == 0  # then or than


def test_noise_of_correlations_is_that_of_noisy_pictures() -> None:
    scores, spread = paper._correlations(FONT, 24)
    letters = np.stack([scores(c) for c in paper.LETTERS])
    assert np.allclose(np.diag(letters), 1)
    assert np.allclose(spread @ spread.T, letters, atol=1e-12)


def test_preferences() -> None:
    first, second = np.array([5, 3, 2, 4, 2, 0]), np.array([3, 5, 2, 4, 3, 2])
    assert paper.choices(first, second).tolist() == [0, 1, 3, 2, 1, 3]


@pytest.mark.parametrize("seed", range(2))
def test_words_and_substitutes_of_the_test_are_not_those_of_the_training(seed: int) -> None:
    given = paper.setup(paper.PAPER.scale("smoke"), seed)
    train, test = given["train"].pairs, given["test"].pairs
    assert not {p.original for p in train} & {p.original for p in test}
    used = [{c for p in part for w in (p.first, p.second) for c in w} - set(paper.LETTERS) for part in (train, test)]
    assert used[0]
    assert used[1]
    assert not used[0] & used[1]


def test_rolled_pictures_keep_pictures_and_choices_and_break_their_order() -> None:
    pairs = paper.setup(paper.PAPER.scale("smoke"), 0)["train"].pairs
    options = {"renderer": paper.WordRenderer(font=FONT), "length": 10}
    real, rolled = paper.LegibilityModel(**options).data(pairs), paper._Rolled(**options).data(pairs)  # type: ignore[arg-type]
    assert (real.x == rolled.x).all()
    assert (rolled.y[:-1] == real.y[1:]).all()
    assert rolled.y[-1] == real.y[0]


@pytest.mark.parametrize("seed", range(2))
def test_perturbations_change_the_share_and_take_the_nearest(seed: int) -> None:
    found = paper.perturbations(FONT, paper.substitutes(FONT), seed)
    assert found["miscounted"] == 0
    assert found["neighbour"] < 1e-9
