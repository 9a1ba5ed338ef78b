"""Dependency between views: exact values, the learned estimate, grids of known information, probes, encoders."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from assay.losses import WPCLoss
from assay.nets import MLP
from assay.papers.wasserstein_dependency import _PairCritic
from assay.represent import (
    PredictiveCoding,
    SpatialMultiGrid,
    WassersteinDependency,
    completeness_probe,
    exact_wdm,
    spectral_encoder,
)
from assay.runtime.errors import InputError
from assay.runtime.random import seeded, torch_rng


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(0, name))


def test_the_exact_value_of_two_points_and_of_the_linear_program() -> None:
    x = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert exact_wdm(x, x, np.array([0, 2, 1, 3])) == pytest.approx(1.0)
    assert exact_wdm(x, x, np.arange(4)) == 0.0
    a, b = draw("a", 7, 2).numpy(), draw("b", 7, 3).numpy()
    perm = np.random.default_rng(0).permutation(7)
    left, right = np.concatenate((a, b), 1), np.concatenate((a, b[perm]), 1)
    cost = np.linalg.norm(left[:, None] - right[None], axis=2)
    sums = np.concatenate((np.kron(np.eye(7), np.ones(7)), np.kron(np.ones(7), np.eye(7))))
    program = linprog(cost.ravel(), A_eq=sums, b_eq=np.full(14, 1 / 7))
    assert exact_wdm(a, b, perm) == pytest.approx(program.fun, abs=1e-6)


def test_the_learned_value_is_near_the_exact_one() -> None:
    x = draw("x", 64, 1)
    y, perm = x.clone(), torch.randperm(64, generator=torch_rng(0, "perm"))
    with seeded(0, "critic"):
        start = _PairCritic(32)
    before = copy.deepcopy(start.state_dict())
    method = WassersteinDependency(steps=150, batch_size=64, lr=1e-2)
    state = torch.get_rng_state()
    found = method.fit(start, x, y, seed=0, perm=perm)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    exact = exact_wdm(x.numpy(), y.numpy(), perm.numpy())
    assert found.value_ == pytest.approx(exact, rel=0.2)
    assert float((found.critic_(x, y) - found.critic_(x, y[perm])).mean()) == pytest.approx(found.value_, rel=1e-5)
    few = WassersteinDependency(steps=5, batch_size=32)
    assert few.fit(start, x, y, seed=1).value_ == few.fit(start, x, y, seed=1).value_


def test_a_pair_alone_in_its_batch_is_left_out() -> None:
    sizes = []

    class Counting(_PairCritic):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            if self.training:
                sizes.append(len(x))
            return super().forward(x, y)

    x, y = draw("x", 5, 1), draw("y", 5, 1)
    WassersteinDependency(steps=4, batch_size=4).fit(Counting(4), x, y, seed=0)
    assert set(sizes) == {4}
    sizes.clear()
    WassersteinDependency(steps=4, batch_size=4).fit(Counting(4), x, y, seed=0, perm=torch.arange(5).roll(1))
    assert set(sizes) == {4, 1}


def test_grids_show_the_factors_and_their_successors() -> None:
    grid = SpatialMultiGrid(rows=2, cols=3)
    assert grid.mutual_information == pytest.approx(6 * math.log(10))
    x, y, factors = grid.sample(40, "train", seed=0)
    assert x.shape == y.shape == (40, 1, 16, 24)
    drawings = grid._parts["train"]
    shown = {bytes(d.numpy().tobytes()): int(c) for d, c in zip(drawings.x, drawings.y, strict=True)}
    for row in range(2):
        for col in range(3):
            here = (slice(None), slice(None), slice(8 * row, 8 * row + 8), slice(8 * col, 8 * col + 8))
            for view, step in ((x, 0), (y, 1)):
                found = [shown[c.contiguous().numpy().tobytes()] for c in view[here]]
                assert found == ((factors[:, 3 * row + col] + step) % 10).tolist()
    again = grid.sample(40, "train", seed=0)
    assert torch.equal(again[0], x)
    assert not torch.equal(grid.sample(40, "train", seed=1)[0], x)
    parts = grid._parts
    assert not set(parts["probe"].index.tolist()) & set(parts["test"].index.tolist())


def test_the_probe_reads_what_is_there() -> None:
    grid = SpatialMultiGrid(rows=1, cols=2)
    whole = completeness_probe(lambda x: x.flatten(1), grid, seed=0, n=400, test=200)
    left = completeness_probe(lambda x: x[..., :8].flatten(1), grid, seed=0, n=400, test=200)
    assert whole.least > 0.75
    assert whole.captured == 2
    assert left.cells[0] > 0.75
    assert left.cells[1] < 0.2
    assert (left.captured, left.mean, left.least) == (1, left.cells.mean(), left.cells.min())


def test_training_tells_pairs_and_leaves_its_inputs() -> None:
    grid = SpatialMultiGrid(rows=1, cols=1)
    x, y, _ = grid.sample(300, "train", seed=0)
    with seeded(0, "nets"):
        phi, psi = MLP(hidden=(32,)), MLP(hidden=(32,))
    before = copy.deepcopy(phi.state_dict())
    for lam in (0.0, 1.0):
        method = PredictiveCoding(loss=WPCLoss(lam), steps=40, batch_size=32, lr=3e-3)
        pair, again = (method.fit(phi, psi, x, y, seed=0) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), again.parameters(), strict=True))
        _, logs = WPCLoss(lam)(pair.phi, pair.psi, x[:64], y[:64])
        assert logs["nce"] > WPCLoss(lam)(phi, psi, x[:64], y[:64])[1]["nce"] + (0.05 if lam else 0.3)
        assert torch.equal(pair(x[:3]), pair.phi(x[:3]))
    assert all(torch.equal(v, before[k]) for k, v in phi.state_dict().items())


def test_a_spectral_encoder_has_a_slope_of_one_at_most() -> None:
    with seeded(0, "net"):
        start = MLP((12,), 5, (32, 16))
        encoder = spectral_encoder(start)
    for _ in range(20):
        encoder(torch.zeros(1, 12))  # power iterations
    encoder.eval()
    a, b = draw("a", 200, 12), draw("b", 200, 12)
    with torch.no_grad():
        slopes = (encoder(a) - encoder(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert slopes.max() <= 1.001
    assert not hasattr(start.head, "parametrizations")


def test_bad_input() -> None:
    x, y = draw("x", 6, 1), draw("y", 6, 1)
    critic = _PairCritic(4)
    for call in (
        lambda: exact_wdm(x.numpy(), y.numpy(), np.zeros(6, int)),
        lambda: exact_wdm(x.numpy(), y[:4].numpy(), np.arange(6)),
        lambda: exact_wdm(x[:0].numpy(), y[:0].numpy(), np.arange(0)),
        lambda: exact_wdm(x.numpy() * np.nan, y.numpy(), np.arange(6)),
        lambda: WassersteinDependency(lam=-1.0).fit(critic, x, y, seed=0),
        lambda: WassersteinDependency().fit(critic, x.long(), y, seed=0),
        lambda: WassersteinDependency().fit(critic, x[:1], y[:1], seed=0),
        lambda: WassersteinDependency(batch_size=1).fit(critic, x, y, seed=0),
        lambda: WassersteinDependency().fit(critic, x, y, seed=0, perm=torch.zeros(6, dtype=torch.int64)),
        lambda: WassersteinDependency(batch_size=1).fit(critic, x, y, seed=0),
        lambda: completeness_probe(lambda v: v, SpatialMultiGrid(), seed=0, n=4, test=2),
        lambda: PredictiveCoding(batch_size=1).fit(nn.Linear(1, 2), nn.Linear(1, 2), x, y, seed=0),
        lambda: SpatialMultiGrid(rows=0),
        lambda: SpatialMultiGrid().sample(0, "train", seed=0),
        lambda: completeness_probe(nn.Flatten(), SpatialMultiGrid(), seed=0, penalty=0.0),
        lambda: spectral_encoder(nn.Sequential(nn.Conv2d(1, 2, 3))),
    ):
        with pytest.raises(InputError, match="expected"):
            call()
    with pytest.raises(InputError, match="unknown"):
        SpatialMultiGrid().sample(3, "valid", seed=0)  # type: ignore[arg-type]
