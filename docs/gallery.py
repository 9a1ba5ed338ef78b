"""Draw the figure of every paper in the ledger from its recorded run. Run by `make gallery`.

Tables come from the result store; what is not there is computed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assay.papers import catalogue, page, runner
from assay.runtime.store import Store

FOLDER = Path(__file__).parent / "gallery"


def _drawn(path: Path, recorded: dict[str, Any]) -> bool:
    """Whether the figure is of the run that ``recorded`` confirms."""
    confirmed = recorded.get("confirms")
    return confirmed is not None and path.exists() and f"<!-- ledger {confirmed['run']} -->" in path.read_text()[:200]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for slug in catalogue.written():
        recorded = runner.recorded(slug, "claim")
        path = FOLDER / f"{slug}.svg"
        if recorded is not None and not _drawn(path, recorded):
            run = runner.reproduce(slug, scale="claim", jobs=2, store=Store())
            text = page.svg(run).replace("<svg", f"<!-- ledger {recorded['key']} --><svg", 1)
            path.write_text(text + "\n", encoding="utf-8")
            print(slug, len(text) // 1024, "KiB")
