"""The table of training with wrong labels is that of the kept runs: complete, on one budget, chosen on noisy labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(DOCS))
    try:
        import noisy_labels

        return noisy_labels
    finally:
        sys.path.remove(str(DOCS))


def test_the_table_is_that_of_the_runs(script: Any) -> None:
    rows, page = script.finished(), (DOCS / "noisy_labels.md").read_text(encoding="utf-8")
    assert script.table(rows) in page
    assert next(script.todo(rows), None) is None
    for labels in script.LABELS:
        for name, entry in script.METHODS.items():
            tried = {r["options"]: r["held"] for r in rows if r["labels"] == labels and r["seed"] == 0}
            kept = script.runs(rows, labels, name)
            assert sorted(kept) == list(range(script.SEEDS))
            assert tried[kept[0]["options"]] == max(tried[text] for text in entry.options)


def test_every_method_that_learns_from_wrong_labels_is_in_it_or_named(script: Any) -> None:
    import assay.labels
    from assay.training import Trainer

    page = (DOCS / "noisy_labels.md").read_text(encoding="utf-8")
    tried = {text.partition(":")[0].partition(".")[2] for entry in script.METHODS.values() for text in entry.options}
    semi = {"FixMatch", "FlexMatch", "FreeMatch", "MixMatch", "ShrinkMatch", "WeightAwareDistillation"}  # few labels
    other = {"ManifoldMixup", "DecoupledMixup"}  # of other networks, and for other ends
    for name in assay.labels.__all__:
        cls = getattr(assay.labels, name)
        if isinstance(cls, type) and issubclass(cls, Trainer) and not cls.__dict__.get("contract", False):
            assert name in tried | semi | other or name in page, name


def test_a_cell_is_the_mean_and_the_paired_difference(script: Any) -> None:
    rows = [
        {"labels": "human_worse", "options": text, "seed": s, "held": 0.5, "clean": clean + s / 100, "wrong": 0.25}
        for text, clean in (("training.Supervised", 0.3), ("labels.CutMix", 0.4))
        for s in range(script.SEEDS)
    ]
    assert script.cell(rows, "human_worse", "CutMix") == "41.0 (+10.0 ± 0.0) | 25"
    assert script.cell(rows, "human_worse", script.CE) == "31.0 | 25"
    assert script.cell(rows, "human_worse", "GCE") == "- | -"
    assert np.isclose(script.runs(rows, "human_worse", "CutMix")[2]["clean"], 0.42)
