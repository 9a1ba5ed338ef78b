"""The result as a tidy table: one row a metric and stage, the same columns for every report, so that runs stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TEXT, NUMBER, WHOLE, FLAG = "string", "float64", "int64", "bool_"
COLUMNS = {
    "run": TEXT,
    "subject": TEXT,
    "stage": TEXT,
    "step": WHOLE,
    "method": TEXT,
    "property": TEXT,
    "metric": TEXT,
    "value": NUMBER,
    "low": NUMBER,
    "high": NUMBER,
    "interval": TEXT,
    "n": WHOLE,
    "unit": TEXT,
    "better": TEXT,
    "how": TEXT,
    "p": NUMBER,
    "significant": FLAG,
    "seconds": NUMBER,
    "profile": TEXT,
    "seed": TEXT,
    "data": TEXT,
    "weights": TEXT,
    "assay": TEXT,
}


def rows(document: Mapping[str, Any], run: str) -> list[dict[str, Any]]:
    """The rows of a report's document; ``run`` names it in every row.

    ``stage`` is "audit"; or, of a repair, "before", "step" (``step`` counts from 1, ``method`` names it), "after" (the
    last step again), "control", and "difference" (after - before with its paired interval, ``p`` and whether it stands
    after Holm's correction). ``seconds`` is the time of the whole property, the same in each of its rows. A seed is a
    text, because a seed may exceed 64 bits.
    """
    if document["kind"] == "audit":
        return list(_audit(document, run, "audit"))
    found = list(_audit(document["before"], run, "before"))
    steps = document["steps"]
    for k, step in enumerate(steps, 1):
        found += _audit(step["audit"], run, "step", k, step["method"])
    after = list(_audit(steps[-1]["audit"], run, "after", len(steps), steps[-1]["method"]))
    found += after
    if document["control"] is not None:
        found += _audit(document["control"], run, "control")
    known = {r["metric"]: r for r in after}
    return found + [_difference(r, known[r["name"]]) for r in document["rows"] if r["name"] in known]


def _audit(
    audit: Mapping[str, Any], run: str, stage: str, step: int | None = None, method: str | None = None
) -> Iterator[dict[str, Any]]:
    meta = audit["meta"]
    head = {"run": run, "subject": audit["name"], "stage": stage, "step": step, "method": method}
    foot = {"profile": audit["profile"], "seed": str(audit["seed"])}
    foot |= {k: None if meta.get(k) is None else str(meta[k]) for k in ("data", "weights", "assay")}
    for key, section in audit["sections"].items():
        for m in section["metrics"]:
            measured = {k: v for k, v in m.items() if k != "name"}
            blank = {"p": None, "significant": None, "seconds": section["seconds"]}
            yield {**head, "property": key, "metric": m["name"], **measured, **blank, **foot}


def _difference(row: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: row[k] for k in ("low", "high", "interval", "p", "significant")}
    return {**after, "stage": "difference", "value": row["difference"], "n": None, "how": None, "seconds": None, **kept}


def parquet(table: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as a parquet file with the columns ``COLUMNS``, also where there are none."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    fields = [(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()]
    safe = [{k: _storable(v, COLUMNS[k]) for k, v in r.items()} for r in table]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(safe, schema=pa.schema(fields)), sink)
    return bytes(sink.getvalue())


def _storable(value: Any, kind: str) -> Any:
    """``value`` for a column: numbers as floats, however large; a text with what UTF-8 cannot hold replaced."""
    if value is None:
        return None
    return (
        value.encode("utf-8", "replace").decode("utf-8") if kind == TEXT else float(value) if kind == NUMBER else value
    )
