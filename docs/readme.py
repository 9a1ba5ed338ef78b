"""Rewrite the measured parts of README.md from the recorded run in docs/runs. Run by `make figures`."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent
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


def replace(text: str, name: str, content: str) -> str:
    """``text`` with what stands between the markers of ``name`` exchanged."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = text.split(start)
    return f"{head}{start}\n{content}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    readme = ROOT.parent / "README.md"
    run = json.loads((ROOT / "runs" / "mnist-trades.json").read_text())
    readme.write_text(replace(readme.read_text(), "effects", effects(run)))
