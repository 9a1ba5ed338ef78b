"""The ledger: one append-only file of recorded runs a paper, failures included. It imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from assay.runtime.errors import InputError
from assay.runtime.store import key_of

OUTCOMES = ("not reproduced", "not separated", "undecided", "reproduced")  # worst first
ROOT = Path(__file__).with_name("ledger")


def entry_key(slug: str, scale: str, base_seed: int, source: str) -> str:
    """What a recorded run is found by."""
    return key_of(slug=slug, scale=scale, base_seed=base_seed, source=source)[:16]


def fingerprint(arms: Mapping[str, Any]) -> str:
    """Of the rows that the real experiment and every sham gave for one seed: another cell is another fingerprint.

    Numbers count to six significant digits, and to 1e-9: what the order of a sum changes is no difference.
    """
    return hashlib.sha256(json.dumps(_rounded(arms), sort_keys=True).encode()).hexdigest()[:12]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return round(float(f"{value:.6g}"), 9) + 0.0 if isinstance(value, float) and math.isfinite(value) else value


def read(slug: str, root: Path = ROOT) -> list[dict[str, Any]]:
    """The recorded runs of a paper, oldest first."""
    path = root / f"{slug}.jsonl"
    if not path.exists():
        return []
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected one JSON object a line") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise InputError(f"{path}:{number}: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict) or not {"key", "scale", "claims", "source"} <= set(row):
            raise InputError(f"{path}:{number}: expected an object with key, scale, claims, source and outcome")
        if not isinstance(row.get("outcome"), str) or row["outcome"] not in OUTCOMES:
            raise InputError(f"{path}:{number}: outcome {row.get('outcome')!r}; expected one of {', '.join(OUTCOMES)}")
        rows.append(row)
    return rows


def append(slug: str, row: dict[str, Any], root: Path = ROOT) -> Path:
    """Add a run at the end of the paper's file; what is there stays as it is."""
    path = root / f"{slug}.jsonl"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"ledger {path}: {error.strerror}; expected a checkout that can be written") from error
    return path


def commit_of(path: Path) -> str | None:
    """The commit that is checked out around ``path``; None outside a checkout."""
    return _git(path, "rev-parse", "HEAD")


def check_committed(paths: Iterable[Path]) -> None:
    """InputError where a file differs from the commit: bounds are committed before the run that they judge."""
    files = [str(p.resolve()) for p in paths]
    changed = _git(Path(files[0]), "status", "--porcelain", "--untracked-files=all", "--ignored", "--", *files)
    if changed is None:
        raise InputError(f"--record: {files[0]} lies in no git checkout; expected one, so that its commit can be named")
    if changed:
        names = ", ".join(line[3:] for line in changed.splitlines()[:3])
        raise InputError(f"--record: {names} differ from the commit; expected the module and its imports committed")


def _git(path: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(path.parent), *arguments], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")
