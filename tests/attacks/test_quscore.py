"""The microbial genetic algorithm by its laws, the map-preserving steps by closed forms, and the attack on both."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from assay.attacks import (
    MIFGSM,
    InterpretationPreservingMIFGSM,
    Linf,
    MicrobialGA,
    QuScore,
    Targeted,
    Toward,
    Untargeted,
)
from assay.attacks.quscore import _LossMean
from assay.data import load_data
from assay.explain import gradient_saliency
from assay.nets import MLP, ResNet, SmallCNN
from assay.runtime.errors import InputError
from assay.runtime.random import Draws, seeded, torch_rng
from assay.subject import Oracle
from assay.training import Supervised


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, "test", torch.arange(n))


def bits(n: int, p: int, d: int) -> Tensor:
    return torch.rand(n, p, d, generator=torch_rng(0, "bits")) < 0.5


class Linear:
    """Fitness w b of n problems, met above ``aim``."""

    def __init__(self, n: int, d: int, aim: float = torch.inf) -> None:
        self.w, self.aim = torch.randn(n, d, generator=torch_rng(1, "w"), dtype=torch.float64), aim
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, rows: Tensor, individuals: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append((rows.clone(), individuals.clone()))
        value = (self.w[rows] * individuals).sum(1)
        return value, value >= self.aim


class TestMicrobialGA:
    def test_a_generation_changes_one_loser_and_asks_once(self) -> None:
        fitness, seen, init = Linear(6, 30), [], bits(6, 4, 30)
        end = MicrobialGA(mutation=0.05, budget=60).run(
            fitness, init, draws(6), lambda rows, population: seen.append(population.clone())
        )
        assert len(seen) == 57
        assert [len(rows) for rows, _ in fitness.calls] == [24] + [6] * 56
        worth = torch.stack([(fitness.w[:, None] * population).sum(2) for population in seen])
        for t, (before, after) in enumerate(pairwise(seen)):
            changed = (before != after).any(2)
            assert (changed.sum(1) <= 1).all()
            # Whoever is changed was no better than someone else, and took the child that was asked about.
            assert (worth[t][changed] <= worth[t].max(1).values[changed.any(1)]).all()
            assert (after[changed] == fitness.calls[t + 1][1][changed.any(1)]).all()
        assert (worth.max(2).values.diff(dim=0) >= 0).all()
        assert end.population.equal(seen[-1])
        torch.testing.assert_close(end.values, worth[-1])
        assert end.best.equal(worth[-1].argmax(1))
        assert (end.queries == 60).all()
        assert init.equal(bits(6, 4, 30))

    def test_it_approaches_the_optimum(self) -> None:
        fitness = Linear(10, 40)
        end = MicrobialGA(mutation=0.02, budget=600).run(fitness, bits(10, 5, 40), draws(10))
        assert (end.values.max(1).values >= 0.85 * fitness.w.clamp_min(0).sum(1)).all()

    def test_mutations_are_binomial(self) -> None:
        n, d, rate = 4000, 40, 0.05
        same = bits(n, 1, d)[:, 0]
        flips = (MicrobialGA(mutation=rate).breed(same, same, draws(n)) ^ same).sum(1).numpy()
        counts = np.bincount(np.minimum(flips, 6), minlength=7)
        law = stats.binom(d, rate)
        expected = n * np.append(law.pmf(range(6)), law.sf(5))
        assert stats.chisquare(counts, expected).pvalue > 1e-4

    def test_the_loser_takes_bits_at_the_rate_of_crossover(self) -> None:
        winner = torch.ones(500, 50, dtype=torch.bool)
        share = MicrobialGA(crossover=0.7, mutation=0.0).breed(winner, ~winner, draws(500)).double().mean()
        assert abs(share - 0.7) < 4 * (0.21 / 25_000) ** 0.5
        assert MicrobialGA(crossover=1.0, mutation=0.0).breed(winner, ~winner, draws(500)).all()
        assert not MicrobialGA(crossover=0.0, mutation=0.0).breed(winner, ~winner, draws(500)).any()

    def test_pairs_are_distinct_and_even(self) -> None:
        """With a winner by position, each individual but the last-ranked loses to each other equally often."""
        seen: list[Tensor] = []
        algorithm = MicrobialGA(crossover=0.0, mutation=1.0, budget=5)  # the loser turns into its complement
        fitness = Linear(9000, 3)
        algorithm.run(
            fitness, torch.zeros(9000, 4, 3, dtype=torch.bool), draws(9000), lambda _, p: seen.append(p.clone())
        )
        lost = seen[1].all(2)
        assert (lost.sum(1) == 1).all()
        assert stats.chisquare(lost.sum(0).numpy()).pvalue > 1e-4

    def test_it_stops_at_the_aim(self) -> None:
        fitness = Linear(8, 30, aim=6.0)
        end = MicrobialGA(mutation=0.02, budget=200).run(fitness, bits(8, 4, 30), draws(8))
        asked = torch.bincount(torch.cat([rows for rows, _ in fitness.calls]), minlength=8)
        assert end.queries.equal(asked)
        value = (fitness.w * end.population[torch.arange(8), end.best]).sum(1)
        assert ((value >= 6) == end.met).all()
        assert end.met.any()

    def test_a_problem_does_not_depend_on_its_neighbours(self) -> None:
        fitness, init = Linear(6, 20, aim=5.0), bits(6, 4, 20)
        whole = MicrobialGA(mutation=0.02, budget=80).run(fitness, init, draws(6))
        some = torch.tensor([4, 1])
        fitness.w = fitness.w[some]
        part = MicrobialGA(mutation=0.02, budget=80).run(fitness, init[some], Draws(0, "test", some))
        assert part.population.equal(whole.population[some])
        assert part.queries.equal(whole.queries[some])

    def test_bad_input(self) -> None:
        for options in ({"crossover": 1.5}, {"mutation": -0.1}, {"budget": 1}):
            with pytest.raises(InputError):
                MicrobialGA(**options)
        good = bits(2, 4, 5)
        for init in (good[:, :1], good.float(), good[0], good[:0], bits(2, 9, 5)):
            with pytest.raises(InputError):
                MicrobialGA(budget=8).run(Linear(2, 5), init, draws(2))


@pytest.fixture(scope="module")
def setting() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A surrogate, another network, and digits that both get right."""
    train, test = load_data("digits:train"), load_data("digits:test")
    with seeded(0, "init"):
        surrogate, target = SmallCNN(widths=(8, 16), hidden=32), MLP(hidden=(48,))
    surrogate, target = (Supervised(epochs=5).fit(m, train, seed=k) for k, m in enumerate((surrogate, target)))
    right = (surrogate(test.x).argmax(1) == test.y) & (target(test.x).argmax(1) == test.y)
    return surrogate, target, test.x[right][:16], test.y[right][:16]


class TestPreserving:
    options: ClassVar[dict[str, Any]] = {"ball": Linf(0.2), "steps": 10, "step_size": 0.2}

    def test_without_its_term_it_climbs_cross_entropy_as_mifgsm_does(self, setting) -> None:
        surrogate, _, x, y = setting
        plain = MIFGSM(**self.options)(surrogate, x, y, seed=0)
        for off in ({"lam_int": 0.0}, {"detach_map": True, "lam_int": 5.0}):
            found = InterpretationPreservingMIFGSM(**self.options, **off)(surrogate, x, y, seed=0)
            assert (found - plain).abs().mean() < 1e-3  # log-odds and cross-entropy point the same way

    def test_the_map_moves_less(self, setting) -> None:
        surrogate, _, x, y = setting
        goal = Toward(y, (y + 1) % 10)
        moved = []
        for weight in (0.0, 3.0):
            attack = InterpretationPreservingMIFGSM(**self.options, lam_int=weight)
            x_adv = attack.run(surrogate, x, goal, seed=0).x_adv
            change = gradient_saliency(surrogate, x_adv, y) - gradient_saliency(surrogate, x, y)
            moved.append(float(change.square().flatten(1).sum(1).mean()))
        assert moved[1] < 0.7 * moved[0]

    def test_one_step_follows_both_gradients(self, setting) -> None:
        """By finite differences of the whole objective, from a given start."""
        surrogate, _, x, y = setting
        surrogate, x, y, t = surrogate.double(), x[:1].double(), y[:1], (y[:1] + 1) % 10
        start = (x + 0.05 * torch.rand(x.shape, generator=torch_rng(3, "start"), dtype=torch.float64)).clamp(0, 1)
        lam = 2.0
        attack = InterpretationPreservingMIFGSM(
            ball=Linf(0.1), steps=1, step_size=0.01, lam_int=lam, bounds=(-9.0, 9.0)
        )
        step = attack.run(surrogate, x, Toward(y, t), seed=0, start=start).x_adv - start
        benign = gradient_saliency(surrogate, x, y)

        def cost(z: Tensor) -> float:
            gap = (gradient_saliency(surrogate, z, y) - benign).square().sum()
            return (nn.functional.cross_entropy(surrogate(z), t) + lam * gap).item()

        h, agree = 1e-6, 0
        slopes = torch.zeros_like(x)
        for k in range(x.numel()):
            e = torch.zeros_like(x).flatten()
            e[k] = h
            slopes.view(-1)[k] = (cost(start + e.view_as(x)) - cost(start - e.view_as(x))) / (2 * h)
        clear = slopes.abs() > 1e-3 * slopes.abs().max()
        agree = (step.sign() == -slopes.sign())[clear].double().mean()
        surrogate.float()
        assert agree > 0.97
        torch.testing.assert_close(step.abs(), torch.full_like(step, 0.001), rtol=1e-6, atol=1e-12)

    def test_the_ball_is_around_x_wherever_it_starts(self, setting) -> None:
        surrogate, _, x, y = setting
        attack = InterpretationPreservingMIFGSM(**self.options)
        result = attack.run(surrogate, x, Untargeted(y), seed=0, start=1 - x)
        assert (result.x_adv - x).abs().max() <= 0.2 + 1e-6

    def test_maps_of_networks_with_a_global_pool(self, setting) -> None:
        x, y = setting[2:]
        with seeded(0, "init"):
            model = ResNet((1, 8, 8), 10, width=4, blocks=(1, 1))
        attack = InterpretationPreservingMIFGSM(**self.options, attribution="cam", lam_int=1.0)
        assert attack.run(model, x, Targeted(y), seed=0).x_adv.shape == x.shape
        with pytest.raises(InputError, match="global average pool"):
            attack(setting[0], x, y, seed=0)

    def test_bad_options(self, setting) -> None:
        for options in ({"lam_int": -1.0}, {"attribution": "lime"}):
            with pytest.raises(InputError):
                InterpretationPreservingMIFGSM(**options)
        with pytest.raises(InputError, match="image"):
            InterpretationPreservingMIFGSM()(setting[1], setting[2].flatten(1), setting[3], seed=0)


class TestQuScore:
    def test_genotype_and_phenotype(self) -> None:
        attack = QuScore(ball=Linf(0.1))
        x = 0.2 + 0.6 * torch.rand(3, 1, 4, 4, generator=torch_rng(0, "x"))
        b = bits(3, 1, 16)[:, 0]
        z = attack.express(b, x)
        torch.testing.assert_close((z - x).abs(), torch.full_like(x, 0.1))
        assert attack.encode((z - x)[:, None])[:, 0].equal(b)

    def test_losses_are_averaged_over_surrogates(self, setting) -> None:
        surrogate, target, x, y = setting
        mean = (nn.functional.cross_entropy(surrogate(x), y) + nn.functional.cross_entropy(target(x), y)) / 2
        torch.testing.assert_close(nn.functional.nll_loss(_LossMean((surrogate, target))(x), y), mean)

    def test_a_good_surrogate_needs_the_first_population_alone(self, setting) -> None:
        surrogate, target, x, y = setting
        common = {"ball": Linf(0.15), "step": 0.04, "budget": 60}
        spent = []
        for surrogates in ((), (target,), (surrogate, target)):
            oracle = Oracle(target)
            result = QuScore(**common, surrogates=surrogates).run(oracle, x, Untargeted(y), seed=0)
            assert int(result.queries.sum()) == oracle.queries
            assert (result.x_adv - x).abs().max() <= 0.15 + 1e-6
            assert (result.gradients > 0).all() == bool(surrogates)
            spent.append((result.queries == 5).double().mean().item())  # at once
        assert spent[1] >= spent[0] + 0.3
        assert spent[2] >= spent[0] + 0.3

    def test_batches_and_models_with_surrogates(self, setting) -> None:
        surrogate, target, x, y = setting
        surrogate, target, x = surrogate.double().train(), target.double(), x.double()
        attack = QuScore(ball=Linf(0.15), step=0.04, budget=40, surrogates=(surrogate,))
        before = {k: v.clone() for k, v in surrogate.state_dict().items()}
        random = torch.get_rng_state()
        whole = attack.run(target, x, Untargeted(y), seed=2)
        parts = attack.run(target, x, Untargeted(y), seed=2, batch_size=5)
        assert surrogate.training
        assert all(v.equal(before[k]) for k, v in surrogate.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in surrogate.parameters())
        assert torch.get_rng_state().equal(random)
        surrogate.float().eval(), target.float()
        assert whole.x_adv.equal(parts.x_adv)
        assert whole.queries.equal(parts.queries)
        assert whole.gradients.equal(parts.gradients)

    def test_targets(self, setting) -> None:
        surrogate, target, x, y = setting
        t = (y + 1) % 10
        attack = QuScore(ball=Linf(0.5), step=0.1, budget=300, mutation=0.02, surrogates=(surrogate,))
        result = attack.run(target, x, Targeted(t), seed=0)
        assert (target(result.x_adv).argmax(1) == t)[result.success].all()
        assert result.success.double().mean() > 0.6

    def test_bad_options(self) -> None:
        bad = ({"ball": Linf(0.0)}, {"pop": 1}, {"pop": 9, "budget": 8}, {"step": 0.0}, {"surrogate_steps": 0})
        for options in (*bad, {"crossover": 2.0}, {"mutation": -1.0}, {"attribution": "x"}):
            with pytest.raises(InputError):
                QuScore(**options)


def test_an_attack_begins_where_it_is_told(setting) -> None:
    surrogate, _, x, y = setting
    still = MIFGSM(ball=Linf(0.3), steps=0)
    start = (x + 0.1).clamp(0, 1)
    torch.testing.assert_close(still.run(surrogate, x, Untargeted(y), seed=0, start=start).x_adv, start)
    halves = still.run(surrogate, x, Untargeted(y), seed=0, start=start, batch_size=3).x_adv
    torch.testing.assert_close(halves, start)
    assert still.run(surrogate, x, Untargeted(y), seed=0).x_adv.equal(x)
