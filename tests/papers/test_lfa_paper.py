"""The exact part of the local-function-approximation paper, its shams, and its reference for Shapley values."""

import pytest
import torch
from torch import Tensor, nn

from assay.explain.lfa import integrated_gradients, kernel_shap
from assay.papers import lfa as paper

LIMITS = {"additive": 1e-6, "path": 1e-6, "squared": 1e-5, "complete": 1e-3, "known": 1e-8}
BROKEN = {"x-gradient": {"path", "complete", "known"}, "stale-mask": {"squared"}}


@pytest.mark.parametrize("seed", range(5))
def test_identities_hold_and_each_sham_breaks_its_own(seed: int) -> None:
    given = paper.drawn(seed)
    real = paper.exact(given)
    assert set(real) == set(LIMITS)
    assert all(real[name] <= limit for name, limit in LIMITS.items()), real
    for sham, names in BROKEN.items():
        found = paper.exact(given, sham)
        assert {name for name, limit in LIMITS.items() if found[name] > limit} == names


class Pair(nn.Module):
    """f(x) = 3 x0 + x1 x2: Shapley values 3 x0, and half the product for each of its factors."""

    def forward(self, x: Tensor) -> Tensor:
        return (3 * x[:, 0] + x[:, 1] * x[:, 2])[:, None]


def test_shapley_values_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(paper.shapley_values(Pair(), x), torch.tensor([[3.0, 5.0, 5.0]], dtype=torch.float64))


def test_shams_change_only_what_they_name() -> None:
    for method in paper.METHODS.values():
        changed = {sham for sham in paper.PAPER.shams if paper._under(sham, method) != method}
        on_path = method.loss == "gradient" and not method.neighbourhood.additive
        expected = {"stale-mask"} if method.loss == "squared" else {"x-gradient"} if on_path else set()
        assert changed == expected
    assert paper._under(None, kernel_shap()) == kernel_shap()
    assert paper._under("x-gradient", integrated_gradients()).neighbourhood.low == 0.0  # type: ignore[attr-defined]


def test_the_tables_are_standardised_and_the_split_follows_the_seed() -> None:
    for name, d in (("tumours", 30), ("diabetes", 10)):
        x, _ = paper._table(name)
        assert x.shape[1] == d
        torch.testing.assert_close(x.mean(0), torch.zeros(d), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0), torch.ones(d), atol=1e-5, rtol=0)
    first, second, again = (paper._network("diabetes", 0, seed)[1] for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
