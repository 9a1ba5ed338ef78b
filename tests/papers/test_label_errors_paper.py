"""The exact parts of the label-errors paper: the rule's definition, where it leaves a choice, and prevalence."""

from fractions import Fraction

import numpy as np
import pytest

from assay.labels import ConfidentLearning
from assay.papers import label_errors as paper


@pytest.mark.parametrize("seed", range(3))
def test_suspects_are_those_of_the_definition_and_need_the_joint_the_right_way_round(seed: int) -> None:
    problems = paper.problems(seed)
    assert len(problems) == paper.PROBLEMS
    assert all(np.array_equal(ConfidentLearning().fit(y, p).suspects_, mask) for y, p, mask in problems)
    swapped = [(paper._Transposed().fit(y, p).suspects_ != mask).any() for y, p, mask in problems]
    assert np.mean(swapped) > 0.9


def test_whole_numbers_by_hand_and_none_where_remainders_are_equal() -> None:
    assert paper._whole([Fraction(7, 2), Fraction(5, 4), Fraction(1, 4)]) == [4, 1, 0]
    assert paper._whole([Fraction(3), Fraction(2)]) == [3, 2]
    assert paper._whole([Fraction(1, 2), Fraction(1, 2)]) is None
    assert paper._whole([Fraction(21, 5), Fraction(7, 5), Fraction(7, 5)]) is None


def test_definition_by_hand() -> None:
    y = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    found = paper.by_definition(y, p)
    assert found is not None
    assert found.tolist() == [False, False, True, False, False, False]
    assert paper.by_definition(y[:4], np.tile([0.4, 0.6], (4, 1))) is None  # no confident sample of label 0


@pytest.mark.parametrize("seed", range(3))
def test_prevalence_curve_is_the_mean_over_every_way_to_drop_items(seed: int) -> None:
    assert paper.curve_gap(seed) < 1e-12
    assert paper._crossings(seed) < 1e-9
