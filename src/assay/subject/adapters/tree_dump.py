"""The JSON that LightGBM's ``dump_model`` writes and does not read back, answered by NumPy.

It follows the format that LightGBM 4 writes and the library's rules for missing values and categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TINY = 1e-35  # LightGBM takes what is no further from 0 for 0
SIDES = ("left_child", "right_child")


@dataclass(frozen=True)
class Tree:
    """Nodes (k,) in any order, the root first; a leaf is its own child on both sides, ``value`` counts at leaves."""

    feature: np.ndarray
    threshold: np.ndarray
    children: np.ndarray
    default: np.ndarray
    missing: np.ndarray
    value: np.ndarray
    categories: Mapping[int, np.ndarray]

    def leaves(self, x: np.ndarray) -> np.ndarray:
        """The value of the leaf that each row of ``x`` (n, d) ends in."""
        node, rows = np.zeros(len(x), int), np.arange(len(x))
        for _ in range(len(self.value)):
            new = self.children[node, self.side(x[rows, self.feature[node]], node)]
            if (new == node).all():
                break
            node = new
        return self.value[node]

    def side(self, value: np.ndarray, node: np.ndarray) -> np.ndarray:
        """0 where ``value`` (n,) goes to the left of its ``node`` (n,), 1 where it goes to the right."""
        kind, absent = self.missing[node], np.isnan(value)
        filled = np.where(absent & (kind != "NaN"), 0.0, value)
        by_default = (absent & (kind == "NaN")) | ((kind == "Zero") & (np.abs(filled) <= TINY))
        side = np.where(by_default, self.default[node], np.where(filled <= self.threshold[node], 0, 1))
        for k, categories in self.categories.items():
            here = node == k
            whole = np.trunc(value[here])  # what is missing goes to the right
            side[here] = np.where((whole >= 0) & np.isin(whole, categories), 0, 1)
        return side


def tree(root: Mapping[str, Any]) -> Tree:
    """A tree of the dump. Raises KeyError, TypeError or ValueError for what is none."""
    nodes, children, k = [root], list[tuple[int, int]](), 0
    while k < len(nodes):
        if "leaf_value" in nodes[k]:
            children.append((k, k))
        else:
            children.append((len(nodes), len(nodes) + 1))
            nodes += [nodes[k][side] for side in SIDES]
        k += 1
    if any("leaf_coeff" in n for n in nodes):
        raise ValueError("its leaves are linear functions; expected constants")
    split = [n.get("decision_type") for n in nodes]
    unknown = {*split} - {"<=", "==", None}
    if unknown or any(("leaf_value" in n) == (d is not None) for n, d in zip(nodes, split, strict=True)):
        raise ValueError(f"a node is neither a leaf nor decided by <= or == ({unknown})")
    return Tree(
        np.array([int(n.get("split_feature", 0)) for n in nodes]),
        np.array([float(n["threshold"]) if d == "<=" else 0.0 for n, d in zip(nodes, split, strict=True)]),
        np.array(children),
        np.array([0 if n.get("default_left", True) else 1 for n in nodes]),
        np.array([str(n.get("missing_type", "None")) for n in nodes]),
        np.array([float(n.get("leaf_value", 0.0)) for n in nodes]),
        {
            k: np.array([float(c) for c in str(nodes[k]["threshold"]).split("||")])
            for k, d in enumerate(split)
            if d == "=="
        },
    )


def forest(document: Mapping[str, Any]) -> list[Tree]:
    """The trees of a dump, of an iteration one after the other. Raises as ``tree``, and for features that it lacks."""
    trees = [tree(one["tree_structure"]) for one in document["tree_info"]]
    most = max((int(t.feature.max()) for t in trees), default=0)
    if most > int(document["max_feature_idx"]) or any(t.feature.min() < 0 for t in trees):
        raise ValueError(f"it splits on feature {most}, beyond max_feature_idx")
    return trees


def scores(trees: Sequence[Tree], outputs: int, x: np.ndarray, *, mean: bool = False) -> np.ndarray:
    """Scores (n,), or (n, c) for ``outputs`` = c > 1, of rows ``x`` (n, d): sums of leaves; of random forests means."""
    total, x = np.zeros((len(x), outputs)), x.astype(np.float64)
    for k, one in enumerate(trees):
        total[:, k % outputs] += one.leaves(x)
    if mean:
        total /= max(len(trees) // outputs, 1)
    return total[:, 0] if outputs == 1 else total
