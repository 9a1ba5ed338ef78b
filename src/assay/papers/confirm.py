"""A recorded verdict after library code has changed: one recorded seed is run again and compared cell by cell.

The base seed of a run follows from the paper's module and its sizes, so only what the module calls can have changed. If
the tables of a seed, shams included, are the same to six digits, the change did not reach what the paper measures
there, and the verdict is recorded for the present code with the seed that shows it. Otherwise the whole run is due.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from assay.papers import catalogue, ledger, runner
from assay.papers.hashing import judgement_hash, run_hash
from assay.runtime.executor import Work, run_shared
from assay.runtime.random import derive
from assay.runtime.store import Store


def confirm(
    slug: str, scale: str = "claim", *, store: Store | None = None, root: Path = ledger.ROOT, on: str = "local"
) -> dict[str, Any] | None:
    """The last recorded run as a row for the present code, appended to the ledger; None where a whole run is due.

    Due it is where no run of this base seed has fingerprints, where the code that judges the tables has changed, and
    where a table differs. The seed is drawn by the hash of the present code among those with a fingerprint. InputError
    for uncommitted code.
    """
    runner.check_recordable(slug)
    module = catalogue.load(slug)
    base, source = runner.derived_seed(slug, scale), run_hash(module.__name__, module.PAPER.scale(scale))
    kept = [r for r in ledger.read(slug, root) if (r["scale"], r["base_seed"]) == (scale, base)]
    if not kept or kept[-1].get("judgement") != judgement_hash(module.__name__):
        return None
    last = kept[-1]
    known = [i for i, table in enumerate(last.get("tables", ())) if table is not None]
    if not known:
        return None
    i = known[int(source[:8], 16) % len(known)]
    task = Work(partial(runner.run_seed, slug, scale, derive(base, slug, i), store=str(store.root) if store else None))
    ((_, ran),) = run_shared([task], {}, on=on, jobs=1)
    if runner.fingerprint_of(ran) != last["tables"][i]:
        return None
    first = last.get("confirms", {"run": last["key"], "commit": last["commit"], "at": last["at"]})
    row = {
        **last,
        "key": ledger.entry_key(slug, scale, base, source),
        "source": source,
        "commit": ledger.commit_of(ledger.ROOT),
        "confirms": {**first, "seed": i},
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    ledger.append(slug, row, root)
    return row
