"""Similarities of captions by hand."""

from __future__ import annotations

import math

import pytest
import torch

from assay.attacks import bleu, caption_similarity
from assay.runtime.errors import InputError


def test_f1_counts_shared_words_by_hand() -> None:
    a = ["seven above two", "one beside one", "one", "", "red"]
    b = ["seven beside two", "one above one two", "two", "", ""]
    assert caption_similarity(a, b).tolist() == pytest.approx([2 / 3, 4 / 7, 0, 1, 0])


def test_bleu_by_hand() -> None:
    a = ["the the the the", "a b c d e", "a b c d", "a b"]
    b = ["the cat sat here", "a b c d x", "a b c d e f", "a b"]
    assert bleu(a, b, 1).tolist() == pytest.approx([1 / 4, 4 / 5, math.exp(1 - 6 / 4), 1])
    assert bleu(a, b, 2).tolist() == pytest.approx([0, math.sqrt(4 / 5 * 3 / 4), math.exp(-0.5), 1])
    assert bleu(a, b)[1] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu(a, b).tolist()[3] == 0  # two words have no 4-grams


def test_embeddings_take_the_place_of_words() -> None:
    table = {"cat": [1.0, 0.0], "feline": [3.0, 0.0], "car": [0.0, 2.0]}

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.tensor([table[t] for t in texts])

    assert caption_similarity(["cat", "cat"], ["feline", "car"], embed).tolist() == pytest.approx([1, 0])
    with pytest.raises(InputError, match="embeddings of shape"):
        caption_similarity(["cat"], ["car"], lambda texts: torch.zeros(2, 3))


@pytest.mark.parametrize(("a", "b"), [(["x"], []), ([], []), ("x", "x")])
def test_bad_input(a: list[str], b: list[str]) -> None:
    for call in (lambda: caption_similarity(a, b), lambda: bleu(a, b)):
        with pytest.raises(InputError, match="two lists"):
            call()
    with pytest.raises(InputError, match="order"):
        bleu(["x"], ["x"], 0)
