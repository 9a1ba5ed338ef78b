"""Memory is flat in the size of the data: two million rows are audited under 2 GB.

What counts is private memory: pages of a mapped file are in no process's way, the system drops them when it likes. The
audited process therefore runs under RLIMIT_DATA, which covers its heap and every private writable mapping and no shared
or read-only one: an allocation that would lift it above the limit fails. Its own reading of VmData is the same number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import assay

ROWS, COLUMNS, CLASSES = 2_000_000, 64, 10
LIMIT = 2 << 30
ONLY = "accuracy,calibration,robustness.linf,geometry,cost"
RUN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
from assay.cli import main
sys.argv = ["assay", *sys.argv[2:]]
main()
"""
MODEL = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 10, bias=False))
    nn.init.eye_(net[0].weight)
    with torch.no_grad():
        net[1].weight.zero_()[:, :10] = 8 * torch.eye(10)
    return net
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of numbers in [0, 1], the label the largest of the first ten for three quarters of them: 512 MB."""
    root, rng, block = tmp_path_factory.mktemp("rows"), np.random.default_rng(0), 50_000
    x = np.lib.format.open_memmap(root / "x.npy", "w+", np.float32, (ROWS, COLUMNS))
    some, y = rng.random((block, COLUMNS), dtype=np.float32), np.empty(ROWS, np.int64)
    for k in range(0, ROWS, block):
        part = np.roll(some, k // block, axis=1)
        x[k : k + block] = part
        y[k : k + block] = part[:, :CLASSES].argmax(1)
    wrong = rng.random(ROWS) < 0.25
    y[wrong] = rng.integers(0, CLASSES, int(wrong.sum()))
    np.save(root / "y.npy", y)
    (root / "rows_model_for_tests.py").write_text(MODEL)
    return root


def audited(folder: Path, cache: Path, limit: int, only: str) -> subprocess.CompletedProcess[str]:
    """An audit of all rows in a process of its own that may not hold more than ``limit`` bytes."""
    source = str(Path(assay.__file__).parents[1])
    env = {
        **os.environ,
        "PYTHONPATH": f"{source}{os.pathsep}{folder}",
        "OMP_NUM_THREADS": "1",
        "ASSAY_CACHE": str(cache),
    }
    command = [sys.executable, "-c", RUN, str(limit), "audit", "rows_model_for_tests:make", "--json"]
    command += ["--data", f"mmap:{folder}", "--only", only]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers mappings on Linux only")
def test_two_million_rows_are_audited_under_two_gigabytes(folder: Path, tmp_path: Path) -> None:
    ran = audited(folder, tmp_path, LIMIT, ONLY)
    assert ran.returncode == 0, ran.stderr
    sections = json.loads(ran.stdout)["sections"]
    assert [*sections] == ONLY.split(",")
    assert not [s["skipped"] for s in sections.values() if s["skipped"]]
    metrics = {m["name"]: m for s in sections.values() for m in s["metrics"]}
    top = metrics["accuracy.top1"]
    assert top["n"] == 0.8 * ROWS
    assert top["value"] == pytest.approx(0.775, abs=0.005)  # a tenth of the random labels are right
    assert (
        metrics["calibration.ece"]["low"] <= metrics["calibration.ece"]["value"] <= metrics["calibration.ece"]["high"]
    )
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".npz"]  # nothing is left on the disk
