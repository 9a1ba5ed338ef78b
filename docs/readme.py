"""Rewrite the measured parts of README.md and docs/chain.md from the runs in docs/runs. Run by `make figures`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
CHAIN = (
    "accuracy.top1",
    "accuracy.worst_class",
    "calibration.ece",
    "calibration.nll",
    "robustness.linf.accuracy@0.02",
    "robustness.linf.accuracy@0.05",
    "robustness.l2.accuracy@0.25",
    "corruption.accuracy",
    "ood.photos.msp.auroc",
    "ood.shuffled.mahalanobis.auroc",
    "privacy.mia.loss.auc",
    "compression.sparsity.accuracy@0.9",
    "explanation.deletion",
)
SHOWN = (
    "accuracy.top1",
    "calibration.ece",
    "robustness.linf.accuracy@0.1",
    "robustness.l2.accuracy@1",
    "corruption.accuracy",
    "certified.linf.accuracy@0.01",
    "ood.photos.msp.auroc",
    "privacy.mia.loss.auc",
    "compression.sparsity.accuracy@0.9",
)


def effects(run: dict[str, object]) -> str:
    """The effects table as markdown."""
    rows = {r["name"]: r for r in run["rows"]}  # type: ignore[attr-defined]
    lines = ["| metric | before | after | control | paired change, 95% | |", "|---|---:|---:|---:|---|---|"]
    for name in SHOWN:
        r = rows[name]
        change = f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
        cells = (f"{r[k]:.3f}" for k in ("before", "after", "control"))
        lines.append(f"| {name} | {' | '.join(cells)} | {change} | {r['verdict']} |")
    return "\n".join(lines)


def chain(run: dict[str, Any]) -> str:
    """Every step of a chain as markdown: the value before, after each step, of the control, and the last change."""
    steps = [step["method"] for step in run["steps"]]
    audits = [{m["name"]: m["value"] for m in _metrics(step["audit"])} for step in run["steps"]]
    rows = {r["name"]: r for r in run["rows"]}
    head = ["metric", "before", *(f"+ {name}" for name in steps), "control", "paired change, 95%", ""]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(steps) + 2) + "---|---|"]
    for name in (n for n in CHAIN if n in rows):
        r = rows[name]
        values = [r["before"], *(a[name] for a in audits), r["control"]]
        change = f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
        lines.append(f"| {name} | {' | '.join(f'{v:.3f}' for v in values)} | {change} | {r['verdict']} |")
    return "\n".join(lines)


def _metrics(audit: dict[str, Any]) -> list[dict[str, Any]]:
    return [m for section in audit["sections"].values() for m in section["metrics"]]


def replace(text: str, name: str, content: str) -> str:
    """``text`` with what stands between the markers of ``name`` exchanged."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(start)
    return f"{head}{start}\n{content}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    readme = ROOT.parent / "README.md"
    run = json.loads((ROOT / "runs" / "mnist-trades.json").read_text())
    readme.write_text(replace(readme.read_text(), "effects", effects(run)))
    page = ROOT / "chain.md"
    run = json.loads((ROOT / "runs" / "cifar10-chain.json").read_text())
    page.write_text(replace(page.read_text(), "chain", chain(run)))
