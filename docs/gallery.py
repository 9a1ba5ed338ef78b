"""Draw the figure of every paper in the ledger from its recorded run. Run by `make gallery`.

Tables come from the result store; what is not there is computed again.
"""

from __future__ import annotations

from pathlib import Path

from assay.papers import catalogue, page, runner
from assay.runtime.store import Store

FOLDER = Path(__file__).parent / "gallery"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for slug in catalogue.written():
        recorded = runner.recorded(slug, "claim")
        if recorded is not None:
            run = runner.reproduce(slug, scale="claim", jobs=2, store=Store())
            text = page.svg(run).replace("<svg", f"<!-- ledger {recorded['key']} --><svg", 1)
            (FOLDER / f"{slug}.svg").write_text(text + "\n", encoding="utf-8")
            print(slug, len(text) // 1024, "KiB")
