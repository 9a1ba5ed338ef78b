"""Online attacks: which k items of a stream to attack, decided at once and for good.

Key: over every order of a short stream, Virtual+ takes exactly the share of the top k that its recursion gives; so it
does, up to sampling error, on random orders of 100 items, where it beats Virtual by stated margins. Support: the other
rules, values seen with noise, and the attack itself: which images, valued by a surrogate, fool a network never seen.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from assay.attacks import (
    FGSM,
    PGD,
    GradientAttack,
    Linf,
    OfflineTopK,
    Optimistic,
    Picker,
    RandomK,
    SingleRef,
    Virtual,
    VirtualPlus,
    attack_values,
    capacity_curve,
    competitive_ratios,
    virtual_plus_ratio,
    virtual_ratio,
)
from assay.data import Data, load_data
from assay.nets import ResNet, SmallCNN
from assay.papers.model import Claim, Paper, Scale, Table
from assay.runtime.inference import predict
from assay.runtime.random import derive, numpy_rng, seeded
from assay.training import Supervised

N, T = 100, 37  # the stream of the theory and how much of it is sampled
MARGINS = {2: 0.05, 5: 0.10, 10: 0.14}  # by k: what Virtual+ is to gain on Virtual
SHARE = 0.378  # of the images that is sampled
NOISE = (1.0, 5.0, 10.0)  # of values 0 ... N - 1

PAPER = Paper(
    slug="online-attacks",
    title="Online Adversarial Attacks",
    authors="Andjela Mladenovic, Avishek Joey Bose, Hugo Berard, William L. Hamilton, Simon Lacoste-Julien, "
    "Pascal Vincent, Gauthier Gidel",
    year=2021,
    arxiv="2103.02014",
    room="attacks",
    also=("decide",),
    kind="theory + method",
    implements=(
        "attacks.VirtualPlus",
        "attacks.Virtual",
        "attacks.Optimistic",
        "attacks.SingleRef",
        "attacks.OfflineTopK",
        "attacks.RandomK",
        "attacks.OnlineAttack",
        "attacks.competitive_ratio",
        "attacks.virtual_plus_ratio",
        "attacks.virtual_plus_limit",
        "attacks.optimal_threshold",
    ),
    claim="Virtual+ picks, online, an exactly known share of a stream's k best items, and more than Virtual does.",
    headline="Best of the single-threshold rules for k < 5; FGSM on chosen items fools more than PGD on random ones.",
    baselines=("virtual", "optimistic", "single-ref", "random"),
    shams={
        "no-sampling": "nothing is sampled: the references start empty and every value above the k-th is picked",
        "record-rate": "the recursion takes item j for a record of the first j, rate 1/j, not for one of their k best",
    },
    scales=(
        Scale(
            "smoke",
            1,
            {"short": 6, "orders": 300, "data": "digits", "net": "cnn", "train": 150, "epochs": 8, "stream": 200}
            | {"k": 20, "shuffles": 5, "eps": 0.15, "steps": 5},
        ),
        Scale(
            "claim",
            5,
            {"short": 7, "orders": 10_000, "data": "mnist", "net": "cnn", "train": 5000, "epochs": 3, "stream": 2000}
            | {"k": 100, "shuffles": 20, "eps": 0.08, "steps": 10},
        ),
        Scale(
            "gpu",
            5,
            {"short": 7, "orders": 10_000, "data": "cifar10", "net": "resnet", "train": 25_000, "epochs": 30}
            | {"stream": 10_000, "k": 1000, "shuffles": 10, "eps": 8 / 255, "steps": 40},
        ),
    ),
)


@cache
def _images(source: str) -> tuple[Data, Data]:
    return load_data(source, "train"), load_data(source, "test")


@cache
def _all_orders(n: int) -> Tensor:
    """Every order of the values 0 ... n - 1, (n!, n)."""
    return torch.tensor(list(permutations(range(n))), dtype=torch.float64)


def _virtual_plus(n: int, k: int, t: int, sham: str | None, *, exhaust: bool = False) -> VirtualPlus:
    return VirtualPlus(n=n, k=k, threshold=0 if sham == "no-sampling" else t, exhaust=exhaust)


def _expected(n: int, k: int, t: int, sham: str | None) -> float:
    """What theory says of Virtual+."""
    if sham == "record-rate":
        return float(capacity_curve(1 / np.arange(1, n + 1), k)[t])
    return virtual_plus_ratio(n, k, t)


def _shares(rule: Picker, seen: Tensor, true: Tensor | None = None) -> np.ndarray:
    """Each run's share of the true top k, (runs,)."""
    return competitive_ratios(rule.pick(seen), seen if true is None else true, rule.k).numpy()


def _random_orders(count: int, seed: int) -> Tensor:
    """Random orders of the values 0 ... N - 1, (count, N)."""
    rng = numpy_rng(seed, "orders")
    return torch.from_numpy(rng.permuted(np.tile(np.arange(N, dtype=float), (count, 1)), axis=1))


def _others(scale: Scale, orders: Tensor) -> list[dict[str, Any]]:
    """The baselines' shares on random orders, Virtual's over every order, and picks at k = 1 that differ."""
    rows: list[dict[str, Any]] = []
    for k in MARGINS:
        rules = {
            "virtual": Virtual(n=N, k=k, threshold=T),
            "optimistic": Optimistic(n=N, k=k, threshold=T),
            "single-ref": SingleRef(n=N, k=k),
        }
        rows += [{"arm": arm, "k": k, "ratio": _shares(rule, orders).mean()} for arm, rule in rules.items()]
    n = scale["short"]
    for k in range(1, 5):
        for t in range(n):
            measured = _shares(Virtual(n=n, k=k, threshold=t), _all_orders(n)).mean()
            rows.append({"arm": "virtual", "virtual_gap": abs(measured - virtual_ratio(n, k, t))})
    same = [rule(n=N, k=1, threshold=T).pick(orders) for rule in (VirtualPlus, Virtual, Optimistic, SingleRef)]
    rows.append({"arm": "one pick", "differ": max(int((p != same[0]).sum()) for p in same)})
    return rows


def _noise(orders: Tensor, seed: int, k: int = 5) -> list[dict[str, Any]]:
    """Virtual+ on values seen with noise, against the truth, and how often noise leaves the top k what it is."""
    rows = []
    draws = torch.from_numpy(numpy_rng(seed, "noise").standard_normal(orders.shape))
    best = OfflineTopK(n=N, k=k)
    for sigma in NOISE:
        seen = orders + sigma * draws
        kept = (best.pick(seen) == best.pick(orders)).all(1).double().mean()
        share = _shares(VirtualPlus(n=N, k=k, threshold=T), seen, orders).mean()
        above = share - float(kept) * virtual_plus_ratio(N, k, T)
        rows.append({"arm": f"noise {sigma:g}", "sigma": sigma, "seen_share": share, "above": above})
    return rows


def _network(scale: Scale, data: Data, seed: int, name: str) -> nn.Module:
    with seeded(seed, "init", name):
        channels, height, width = data.shape
        shape, classes = (channels, height, width), len(data.classes)
        start = SmallCNN(shape, classes, (8, 16), 32) if scale["net"] == "cnn" else ResNet(shape, classes)
    return Supervised(epochs=scale["epochs"]).fit(start, data, seed=derive(seed, name))


def _attacked(scale: Scale, seed: int) -> dict[str, dict[str, Tensor]]:
    """By attack: what each image is worth by the surrogate and by the target (n,), and whether it fools the target.

    The two networks are trained on disjoint images.
    """
    train, test = _images(scale["data"])
    pool, stream = train.limit(2 * scale["train"], seed=seed), test.limit(scale["stream"], seed=seed)
    halves = pool.split(0.5, seed=seed)
    surrogate, target = (_network(scale, h, seed, name) for h, name in zip(halves, ("source", "target"), strict=True))
    ball = Linf(scale["eps"])
    attacks: dict[str, GradientAttack] = {
        "fgsm": FGSM(ball=ball, early_stop=False),
        "pgd": PGD(ball=ball, steps=scale["steps"], early_stop=False),
    }
    found = {}
    for name, attack in attacks.items():
        x_adv = attack(surrogate, stream.x, stream.y, seed=derive(seed, "attack"))
        found[name] = {
            "source": attack_values(surrogate, x_adv, stream.y),
            "target": attack_values(target, x_adv, stream.y),
            "fooled": predict(target, x_adv).argmax(1) != stream.y,
        }
    return found


def setup(scale: Scale, seed: int) -> dict[str, Any]:
    """Random orders of values and of images, the attacked images, and what no sham touches."""
    orders = _random_orders(scale["orders"], seed)
    rng = numpy_rng(seed, "shuffles")
    shuffles = np.stack([rng.permutation(scale["stream"]) for _ in range(scale["shuffles"])])
    given = {"orders": orders, "attacked": _attacked(scale, seed), "shuffles": torch.from_numpy(shuffles)}
    fixed = [*_others(scale, orders), *_noise(orders, seed), *_fooling_others(scale, seed, given)]
    return {**given, "fixed": fixed}


def _fooling(arm: str, rule: Picker, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The share of the k images picked by the surrogate's values that fool the target, over orders of the stream."""
    rows = []
    for attack, found in given["attacked"].items():
        source, fooled = (found[name][given["shuffles"]] for name in ("source", "fooled"))
        rows.append({"arm": arm, f"fool_{attack}": _fooled(rule, source, fooled)})
    return rows


def _fooled(rule: Picker, values: Tensor, fooled: Tensor) -> float:
    return float((rule.pick(values) & fooled).sum(1).double().mean()) / rule.k


def _fooling_others(scale: Scale, seed: int, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The same by the baselines; offline also by the target's own values."""
    n, k = scale["stream"], scale["k"]
    rows = _fooling("random", RandomK(n=n, k=k, seed=seed), given)
    rows += _fooling("virtual", Virtual(n=n, k=k, threshold=round(SHARE * n), exhaust=True), given)
    rows += _fooling("offline", OfflineTopK(n=n, k=k), given)
    for attack, found in given["attacked"].items():
        best = _fooled(OfflineTopK(n=n, k=k), found["target"][None], found["fooled"][None])
        rows.append({"arm": "offline", f"best_{attack}": best})
    return rows


def experiment(scale: Scale, seed: int, given: dict[str, Any], sham: str | None) -> Table:
    """Virtual+ against its recursion, over every order and over random ones, and the attack."""
    rows: list[dict[str, Any]] = [*given["fixed"]]
    n = scale["short"]
    for k in range(1, 5):
        for t in range(1, n):
            measured = _shares(_virtual_plus(n, k, t, sham), _all_orders(n)).mean()
            rows.append({"arm": "every order", "k": k, "t": t, "gap": abs(measured - _expected(n, k, t, sham))})
    for k in MARGINS:
        shares = _shares(_virtual_plus(N, k, T, sham), given["orders"])
        error = shares.std(ddof=1) / len(shares) ** 0.5
        expected = _expected(N, k, T, sham)
        z = abs(shares.mean() - expected) / error
        rows.append({"arm": "virtual+", "k": k, "ratio": shares.mean(), "expected": expected, "z": z})
    size = scale["stream"]
    chosen = _virtual_plus(size, scale["k"], round(SHARE * size), sham, exhaust=True)
    return Table.of(rows + _fooling("virtual+", chosen, given))


def claims(table: Table) -> list[Claim]:
    """The recursion and the margins over Virtual decide; other rules, noise and the attack support."""
    both = ("no-sampling", "record-rate")
    return [
        Claim(
            "over every order of a short stream, k = 1 to 4 and every t > 0: Virtual+'s mean share of the top k less "
            "its recursion, largest absolute difference",
            table.per_seed("gap", np.max),
            at_most=1e-12,
            rule="exact",
            refuted_by=both,
        ),
        Claim(
            "n = 100, t = 37, random orders: the same difference in standard errors, the largest of k = 2, 5, 10",
            table.per_seed("z", np.max),
            at_most=3,
            rule="k-of-n",
            k=4,
            refuted_by=both,
        ),
        *(
            Claim(
                f"n = 100, t = 37, k = {k}: share of the top k, Virtual+ less Virtual",
                table.where(k=k).gain("virtual+", "virtual", "ratio"),
                at_least=margin,
                refuted_by=("no-sampling",),
            )
            for k, margin in MARGINS.items()
        ),
        *_rule_claims(table),
        *_attack_claims(table),
    ]


def _rule_claims(table: Table) -> list[Claim]:
    """The other rules, and values that are seen with noise."""
    return [
        Claim(
            "over every order of a short stream: Virtual's mean share less its closed form, largest",
            table.per_seed("virtual_gap", np.max),
            at_most=1e-12,
            rule="exact",
            key=False,
        ),
        Claim(
            "k = 1: decisions in which Virtual+, Virtual, Optimistic and Single-Ref differ",
            table.per_seed("differ"),
            at_most=0,
            rule="exact",
            key=False,
        ),
        *(
            Claim(
                f"n = 100, t = 37, k = {k}: share of the top k, Virtual+ less Optimistic",
                table.where(k=k).gain("virtual+", "optimistic", "ratio"),
                at_least=0,
                key=False,
            )
            for k in MARGINS
        ),
        Claim(
            "k = 2: share of the top k, Virtual+ less Single-Ref at its own threshold",
            table.where(k=2).gain("virtual+", "single-ref", "ratio"),
            at_least=0,
            key=False,
        ),
        Claim(
            "k = 10: share of the top k, Single-Ref at its own threshold less Virtual+",
            table.where(k=10).gain("single-ref", "virtual+", "ratio"),
            at_least=0,
            key=False,
        ),
        Claim(
            "values seen with noise, k = 5: Virtual+'s share less P(noise keeps the top k) times its ratio, the least",
            table.per_seed("above", np.min),
            at_least=0,
            key=False,
        ),
    ]


def _attack_claims(table: Table) -> list[Claim]:
    def fool(arm: str, attack: str) -> np.ndarray:
        return table.per_seed(f"fool_{attack}", arm=arm)

    best = table.per_seed("best_fgsm", arm="offline")
    return [
        Claim(
            "FGSM, share of k picked images that fool the unseen network: Virtual+ less random",
            fool("virtual+", "fgsm") - fool("random", "fgsm"),
            at_least=0.35,
            key=False,
            refuted_by=("no-sampling",),
        ),
        Claim(
            "FGSM: Virtual+'s fooling share over that of the k images worst for the unseen network",
            fool("virtual+", "fgsm") / best,
            at_least=0.9,
            key=False,
            refuted_by=("no-sampling",),
        ),
        Claim(
            "choosing beats a stronger attack: FGSM on Virtual+'s images less PGD on random ones",
            fool("virtual+", "fgsm") - fool("random", "pgd"),
            at_least=0.25,
            key=False,
            refuted_by=("no-sampling",),
        ),
    ]


def figure(table: Table) -> Figure:
    """Shares of the top k by rule against the recursion, and fooling shares by rule and attack."""
    drawing = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    ks = list(MARGINS)
    for arm in ("virtual+", "single-ref", "optimistic", "virtual"):
        left.plot(ks, [table.where(k=k, arm=arm).values("ratio").mean() for k in ks], "o", label=arm)
    left.plot(ks, [table.where(k=k).values("expected").mean() for k in ks], color="0.6", label="recursion")
    left.set(xlabel="k", ylabel="share of the top k", title=f"n = {N}, t = {T} (Single-Ref: its own t)")
    left.legend(frameon=False, fontsize="small")
    arms = ("random", "virtual", "virtual+", "offline")
    for shift, attack in ((-0.2, "fgsm"), (0.2, "pgd")):
        heights = [table.values(f"fool_{attack}", arm=arm).mean() for arm in arms]
        right.bar(np.arange(len(arms)) + shift, heights, 0.4, label=attack.upper())
    right.set(ylabel="fooling share", title="k picked images, unseen network", xticks=range(len(arms)))
    right.set_xticklabels(arms)
    right.legend(frameon=False)
    return drawing
