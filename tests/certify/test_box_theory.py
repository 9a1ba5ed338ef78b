"""Boxes of linear networks: the optimal one by corners, invariance by brute force, expectations by Monte Carlo."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special
from scipy import stats as laws

from assay.certify import (
    box_reconstruction_theory,
    init_tightness_theory,
    is_propagation_invariant,
    layerwise_box,
    optimal_box,
    sign_rank_one,
)
from assay.runtime.errors import InputError
from assay.runtime.random import torch_rng


def matrices(seed: int, *sizes: int, low: int = -2, high: int = 3) -> list[torch.Tensor]:
    g = torch_rng(seed, "matrices")
    return [torch.randint(low, high, (b, a), generator=g).double() for a, b in itertools.pairwise(sizes)]


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_optimal_box_is_the_hull_of_the_corners(seed: int, layers: int) -> None:
    weights = matrices(seed, 3, *[4] * (layers - 1), 2)
    e = torch.rand(3, generator=torch_rng(seed, "e"), dtype=torch.float64)
    z = torch.tensor(list(itertools.product((-1, 1), repeat=3))) * e
    for w in weights:
        z = z @ w.T
    assert torch.allclose(optimal_box(weights, e), z.abs().amax(0))
    assert (layerwise_box(weights, e) >= optimal_box(weights, e) - 1e-12).all()


@given(st.integers(0, 10**6))
def test_two_layers_are_invariant_iff_products_have_one_sign(seed: int) -> None:
    w1, w2 = matrices(seed, 2, 3, 2, low=-1, high=2)
    one = True
    for i, j in itertools.product(range(2), range(2)):
        products = [float(w2[i, k] * w1[k, j]) for k in range(3)]
        one &= not (min(products) < 0 < max(products))
    assert is_propagation_invariant([w1, w2]) == one
    boxes = [
        bool((f([w1, w2], e) == g([w1, w2], e)).all()) for e in torch.eye(2) for f, g in [(optimal_box, layerwise_box)]
    ]
    assert all(boxes) == one


def test_every_small_pair_without_zeros_has_a_product_of_sign_rank_one_where_invariant() -> None:
    signs = [torch.tensor(s).double().view(2, 2) for s in itertools.product((-1, 1), repeat=4)]
    size1, size2 = torch.tensor([[1.0, 2], [3, 1]]).double(), torch.tensor([[2.0, 1], [1, 5]]).double()
    invariant = 0
    for s1, s2 in itertools.product(signs, signs):
        pair = [s1 * size1, s2 * size2]
        if is_propagation_invariant(pair):
            invariant += 1
            assert sign_rank_one(pair[1] @ pair[0])
    # both factors must show the same outer product of signs: 8 patterns of W1, each with 4 flips of the hidden units
    assert invariant == 32


def test_an_identity_factor_is_invariant_with_any_signs() -> None:
    odd = torch.tensor([[1.0, 1], [1, -1]])
    assert is_propagation_invariant([odd, torch.eye(2)])
    assert not sign_rank_one(odd)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_sign_rank_one_is_every_block_of_four(seed: int, m: int, n: int) -> None:
    (w,) = matrices(seed, n, m)
    blocks = itertools.product(range(m), range(m), range(n), range(n))
    assert sign_rank_one(w) == all(w[i, j] * w[i, q] * w[p, j] * w[p, q] >= 0 for i, p, j, q in blocks)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_constructed_factors_of_one_sign_pattern_are_invariant(layers: int) -> None:
    g = torch_rng(layers, "constructed")
    sizes = [3, 5, 4, 6, 2][: layers + 1]
    signs = [torch.randint(2, (n,), generator=g) * 2.0 - 1 for n in sizes]
    weights = [
        torch.rand(b, a, generator=g) * signs[k + 1][:, None] * signs[k]
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    assert is_propagation_invariant(weights, tol=1e-12)
    assert is_propagation_invariant([w.abs() for w in weights])
    weights[0][0, 0] *= -1
    assert not is_propagation_invariant(weights, tol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 7, 40])
def test_theory_of_two_layers_against_integrals(d: int) -> None:
    # E|sum of d products| = E[length of d normals] E|N|, by the chi law; the layer-wise radius is d E|N|^2
    length, _ = integrate.quad(lambda t: t * laws.chi.pdf(t, d), 0, np.inf)
    half = math.sqrt(2 / math.pi)
    assert init_tightness_theory(d) == pytest.approx(length * half / (d * half**2), rel=1e-9)
    assert init_tightness_theory(d, 1) == 1
    expected = math.sqrt(math.pi) * special.gamma((d + 1) / 2) / (d * special.gamma(d / 2))
    assert init_tightness_theory(d, 4) == pytest.approx(expected**3, rel=1e-12)


@pytest.mark.parametrize(("d", "depth"), [(8, 2), (64, 2), (16, 3), (8, 4)])
def test_theory_against_random_networks(d: int, depth: int) -> None:
    g = torch_rng(d, "monte carlo", depth)
    best, layered = 0.0, 0.0
    for _ in range(600 if d == 8 else 60):
        sizes = [60, *[d] * (depth - 1), 60]
        weights = [torch.randn(b, a, generator=g) for a, b in itertools.pairwise(sizes)]
        best += float(optimal_box(weights, torch.ones(60)).sum())
        layered += float(layerwise_box(weights, torch.ones(60)).sum())
    assert best / layered == pytest.approx(init_tightness_theory(d, depth), rel=0.025)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_bottleneck_against_random_projections(k: int) -> None:
    d = 2000
    u = torch.linalg.qr(torch.randn(d, k, generator=torch_rng(k, "haar"), dtype=torch.float64)).Q
    layered, best = (float(f([u.T, u], torch.ones(d)).mean()) for f in (layerwise_box, optimal_box))
    assert layered == pytest.approx(box_reconstruction_theory(k)[0], rel=0.02)
    assert best == pytest.approx(box_reconstruction_theory(k)[1], rel=0.02)


def test_bad_input() -> None:
    w = torch.ones(2, 3)
    with pytest.raises(InputError, match=r"weights\[1\] takes 3 inputs; expected 2"):
        optimal_box([w, w], torch.ones(3))
    with pytest.raises(InputError, match="expected numbers >= 0"):
        layerwise_box([w], -torch.ones(3))
    with pytest.raises(InputError, match="last axis of 3"):
        layerwise_box([w], torch.ones(2))
    with pytest.raises(InputError, match="at least one matrix"):
        is_propagation_invariant([])
    with pytest.raises(InputError, match="tol"):
        is_propagation_invariant([w], tol=-1)
    with pytest.raises(InputError, match="finite matrix"):
        sign_rank_one(torch.full((2, 2), torch.nan))
    with pytest.raises(InputError, match="width"):
        init_tightness_theory(0)
    with pytest.raises(InputError, match="k is 0"):
        box_reconstruction_theory(0)
