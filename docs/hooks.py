"""The generated pages of the documentation: one a paper, one a room, from the catalogue, the ledger and the sources."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from assay.papers import ledger, status

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "gallery"
ORDER = {name: i for i, name in enumerate(status.STATUSES)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    catalogue = json.loads((ROOT / "src/assay/catalogue.json").read_text(encoding="utf-8"))
    papers = status.papers()
    pages = {
        "index.md": _copied("README.md"),
        "contributing.md": _copied("CONTRIBUTING.md"),
        "changelog.md": _copied("CHANGELOG.md"),
        "papers/index.md": papers_index(papers),
        "gallery.md": gallery(papers),
        "rooms/index.md": rooms_index(catalogue["methods"]),
        "attacks.md": attacks(catalogue["methods"]),
        **{f"papers/{p['slug']}.md": paper(p) for p in papers},
        **{f"rooms/{name}.md": room(name, papers) for name in _rooms(catalogue["methods"])},
    }
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def _copied(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    moved = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    for old, new in moved.items():
        text = text.replace(f"]({old})", f"]({new})")
    return re.sub(r"\]\(docs/", "](", text)


def _rooms(methods: list[dict[str, Any]]) -> list[str]:
    return sorted({m["room"] for m in methods})


def _state(row: dict[str, Any]) -> str:
    return row["status"] + (" (stale)" if row["stale"] else "")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in line) + " |" for line in lines)


def papers_index(papers: list[dict[str, Any]]) -> str:
    """All papers by room, those that are decided first."""
    counts = ", ".join(f"{n} {s}" for s in status.STATUSES if (n := sum(p["status"] == s for p in papers)))
    parts = [f"# Papers\n\n{len(papers)} papers: {counts}.\n"]
    for name in sorted({p["room"] for p in papers}):
        chosen = sorted((p for p in papers if p["room"] == name), key=lambda p: (ORDER[p["status"]], p["slug"]))
        rows = [(f"[{p['slug']}]({p['slug']}.md)", escape(p["title"]), _state(p)) for p in chosen]
        parts.append(f"## {name}\n\n{_table(('paper', 'title', 'status'), rows)}\n")
    return "\n".join(parts)


def paper(row: dict[str, Any]) -> str:
    """What a paper claims, what assay has of it, and the recorded verdicts."""
    parts = [f"# {row['title']}\n"]
    if not row["written"]:
        return parts[0] + f"\nPlanned, in the room `{row['room']}`.\n"
    link = f"[arXiv:{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']})"
    parts.append(f"{row['authors']}, {row['year']}. {link}. Status: **{_state(row)}**.\n")
    parts.append(f"{row['claim']}\n\nAs reported: {row['headline']}\n")
    if row["needs_gpu"]:
        parts.append(
            f"Needs a GPU: {row['needs_gpu']['reason']}. The pilot is run `{row['needs_gpu']['key']}` of the ledger.\n"
        )
    code = ", ".join(f"[`assay.{n}`](../rooms/{n.partition('.')[0]}.md)" for n in row["implements"])
    parts.append(f"Code: {code}.\n\n```\nassay reproduce {row['slug']}\n```\n")
    runs = ledger.read(row["slug"])
    if runs:
        parts.append(_recorded(row, runs[-1]))
    if (FIGURES / f"{row['slug']}.svg").exists():
        parts.append(f"## The figure, from our numbers\n\n![{row['slug']}](../gallery/{row['slug']}.svg)\n")
    return "\n".join(parts)


def _recorded(row: dict[str, Any], run: dict[str, Any]) -> str:
    head = ("claim", "observed", "bound", "rule", "verdict")
    parts = ["## The last recorded run\n", _table(head, [_claim(c) for c in run["claims"]]), ""]
    for name, claims in run["shams"].items():
        named = [_claim(c) for c in claims if name in c["refuted_by"]]
        parts += [f"**Sham {name}**: {row['shams'].get(name, '')}\n", _table(head, named), ""]
    same = run.get("confirms")
    again = (
        f" Recorded {same['at'][:10]}; since then library code has changed, and seed {same['seed']} of 0 to "
        f"{len(run['tables']) - 1} was run again and gave the same tables."
        if same
        else ""
    )
    spent = run["seconds"]["setup"] + run["seconds"]["real"] + sum(run["seconds"]["shams"].values())
    return "\n".join(
        [
            *parts,
            f"Scale {run['scale']}, base seed {run['base_seed']}, {spent:.0f} s, {run['at'][:10]}: {run['outcome']}."
            f"{again}\n",
        ]
    )


def _claim(c: dict[str, Any]) -> tuple[str, ...]:
    number: Callable[[float | None], str] = lambda v: "" if v is None else f"{v:.4g}"  # noqa: E731
    ends = [f"≥ {number(c['at_least'])}"] if c["at_least"] is not None else []
    ends += [f"≤ {number(c['at_most'])}"] if c["at_most"] is not None else []
    text = escape(c["text"]) + ("" if c["key"] else " (support)")
    return (
        text,
        f"{number(c['value'])} [{number(c['low'])}, {number(c['high'])}]",
        ", ".join(ends),
        c["rule"],
        c["verdict"],
    )


def gallery(papers: list[dict[str, Any]]) -> str:
    """The figures of the recorded papers, drawn by their modules from the recorded runs."""
    shown = [p for p in papers if (FIGURES / f"{p['slug']}.svg").exists()]
    cells = [f"## [{p['title']}](papers/{p['slug']}.md)\n\n![{p['slug']}](gallery/{p['slug']}.svg)\n" for p in shown]
    return "\n".join(["# Gallery\n\nEach figure is drawn by the paper's module from the run in the ledger.\n", *cells])


def rooms_index(methods: list[dict[str, Any]]) -> str:
    """All methods by room."""
    parts = ["# Rooms\n"]
    for name in _rooms(methods):
        rows = [
            (f"[{m['name']}]({name}.md)", m["kind"], escape(m["claim"]), "yes" if m["repairs"] else "")
            for m in methods
            if m["room"] == name
        ]
        parts.append(f"## [{name}]({name}.md)\n\n{_table(('method', 'kind', 'what', 'repairs'), rows)}\n")
    return "\n".join(parts)


ACCESS = {
    "DECISION": "The model only says which class it takes an input for.",
    "SCORE": "The model gives logits or probabilities.",
    "GRADIENT": "Gradients with respect to the input can be taken.",
    "WEIGHTS": "The weights and hidden layers can be read.",
}


def attacks(methods: list[dict[str, Any]]) -> str:
    """Which attack for which access, from the methods' own declarations."""
    text = "More access includes less: every attack of a section above another's also runs where more is granted."
    parts = [f"# Which attack for which access\n\n{text}\n"]
    for level, meaning in ACCESS.items():
        found = [m for m in methods if m["kind"] in ("attack", "universal") and m["access"] == level]
        rows = [
            (
                f"[{m['name'].partition('.')[2]}](rooms/attacks.md#assay.{m['name']})",
                {"ball": "a point in a ball", "minimum-norm": "a near point"}.get(
                    m.get("guarantee"), "one for all inputs"
                ),
                escape(m["claim"]),
            )
            for m in found
        ]
        parts.append(f"## {level}\n\n{meaning}\n\n{_table(('attack', 'finds', 'how'), rows)}\n")
    return "\n".join(parts)


def room(name: str, papers: list[dict[str, Any]]) -> str:
    """The reference of a room."""
    held = [p for p in papers if p["written"] and name in (p["room"], *p["also"])]
    links = ", ".join(f"[{p['slug']}](../papers/{p['slug']}.md)" for p in held) or "none yet"
    return f"# assay.{name}\n\nPapers: {links}.\n\n::: assay.{name}\n"
