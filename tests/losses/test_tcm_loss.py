"""The threshold-consistent margin loss: a peer's numbers, the double loop, and its shams."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.losses import TCMLoss
from assay.papers.tcm import _ClassRelative, _ShuffledLabels, exact, pair_loop
from assay.runtime.errors import InputError


def _batch() -> tuple[Tensor, Tensor]:
    y = torch.arange(12) % 3
    z = torch.sin(torch.arange(1.0, 61.0, dtype=torch.float64) ** 1.5).reshape(12, 5)
    return z + 1.5 * torch.cos(torch.arange(15.0, dtype=torch.float64)).reshape(3, 5)[y], y


def test_against_pytorch_metric_learning() -> None:
    # ThresholdConsistentMarginLoss of pytorch-metric-learning 2.9.0 on the same batch
    theirs = {
        (0.9, 0.5, 1.0, 1.0): 0.39871785511891134,
        (0.7, 0.2, 5.0, 2.0): 1.102367844128449,
        (0.99, 0.98, 1.0, 1.0): 0.3137624241178949,
        (-0.9, -0.95, 1.0, 1.0): 0.8445261089988856,
    }
    for options, value in theirs.items():
        assert abs(float(TCMLoss(*options)(*_batch())) - value) < 1e-12


def test_is_the_double_loop_and_the_shams_are_not() -> None:
    z, y = _batch()
    assert abs(float(TCMLoss(0.8, 0.3, 2.0, 3.0)(z, y)) - pair_loop(z.numpy(), y.numpy(), 0.8, 0.3, (2.0, 3.0))) < 1e-12
    assert exact(TCMLoss, 0)["loss"] < 1e-12
    assert min(exact(rule, 0)["loss"] for rule in (_ClassRelative, _ShuffledLabels)) > 1e-3


def test_class_relative_margins_are_the_class_means() -> None:
    z, y = _batch()
    unit = torch.nn.functional.normalize(z, dim=1)
    s, same = unit @ unit.T, y[:, None] == y
    upper, lower = _ClassRelative().margins(s, same & ~torch.eye(12).bool(), s, ~same)
    inside = [s[i, j] for i in range(12) for j in range(12) if i != j and y[i] == y[j] == 1]
    across = [s[i, j] for i in range(12) for j in range(12) if y[i] == 1 and y[j] != 1]
    assert torch.allclose(upper[y == 1], torch.stack(inside).mean())
    assert torch.allclose(lower[y == 1], torch.stack(across).mean())


def test_scale_of_the_embeddings_does_not_matter() -> None:
    z, y = _batch()
    assert torch.allclose(TCMLoss()(z, y), TCMLoss()(z * torch.linspace(0.1, 9, 12)[:, None], y))


def test_a_term_without_hard_pairs_is_zero_with_a_gradient() -> None:
    z = torch.eye(4, dtype=torch.float64).requires_grad_()
    alone = TCMLoss()(z, torch.arange(4))  # orthogonal, all of different labels
    (gradient,) = torch.autograd.grad(alone, z)
    assert alone == 0
    assert torch.equal(gradient, torch.zeros(4, 4).double())
    assert TCMLoss()(z, torch.zeros(4, dtype=torch.int64)) == 0.9  # no negative pair, positives at cosine 0


def test_many_pairs_in_half_precision_do_not_overflow() -> None:
    z, y = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)).half(), torch.arange(400) % 2
    assert torch.equal(TCMLoss()(z, y), TCMLoss()(z.float(), y))


def test_margins_are_inclusive() -> None:
    # one pair on the margin and one beyond: the mean is over both
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    loss = TCMLoss(0.5, 0.0, 0.0, 1.0)(z, torch.tensor([0, 1, 0]))
    assert loss == 0.0
    loss = TCMLoss(0.0, -0.5, 1.0, 0.0)(z, torch.tensor([0, 0, 0]))
    assert torch.allclose(loss, torch.tensor(1 / 3).double())  # similarities 0, 0, -1


def test_explicit_pairs_are_all_pairs() -> None:
    z, y = _batch()
    same = (y[:, None] == y) & ~torch.eye(12).bool()
    pairs = (*same.nonzero(as_tuple=True), *(y[:, None] != y).nonzero(as_tuple=True))
    assert torch.allclose(TCMLoss()(z, y, pairs), TCMLoss()(z, y))


def test_options() -> None:
    for bad in ((0.5, 0.9), (1.2, 0.5), (0.9, -1.5), (0.9, 0.5, -1.0), (0.9, 0.5, 1.0, np.inf)):
        with pytest.raises(InputError, match="TCMLoss"):
            TCMLoss(*bad)
    with pytest.warns(RuntimeWarning, match="both margins"):
        TCMLoss(0.5, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TCMLoss()
    with pytest.raises(InputError, match="zero"):
        TCMLoss()(torch.zeros(3, 2), torch.arange(3))


@pytest.mark.parametrize(
    "pairs",
    [
        ([0], [12], [0], [1]),
        ([-1], [1], [0], [1]),
        ([0, 1, 2], [1, 2], [0], [1]),
        ([0], [1], [0.0], [1]),
        ([[0]], [1], [0], [1]),
        ([0], [1], [0]),
    ],
)
def test_pairs_that_name_no_pairs(pairs: tuple[list[int], ...]) -> None:
    z, y = _batch()
    with pytest.raises(InputError, match="expected"):
        TCMLoss()(z, y, tuple(torch.tensor(i) for i in pairs))
    empty = torch.zeros(0, dtype=torch.int64)
    assert TCMLoss()(z, y, (empty,) * 4) == 0
