"""What the command line says of workers, processes and switches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_processes import Cli

from assay.audit import planning
from assay.nets import MLP
from assay.runtime.random import seeded
from assay.subject import Subject


def test_a_plan_for_several_workers(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_startup", lambda on, workers: 2.0 if on == "local" else 9.0)
    words = ("audit", folder, "--only", "robustness,accuracy", "--plan")
    document = json.loads(cli(*words, "--jobs", 4, "--json").out)
    assert document["workers"] == 4
    assert {r["name"]: r["pieces"] for r in document["properties"]}["robustness.linf"] == 4
    assert 2.0 <= document["wall"] <= 2.0 + document["seconds"]
    assert json.loads(cli(*words, "--on", "ray", "--json").out)["wall"] >= 9.0
    shown = cli(*words, "--jobs", 4)
    assert "with 4 workers (11 pieces), their start-up included" in shown.out
    assert "workers" not in cli(*words).out


def test_switches_reach_the_audit_and_wrong_ones_are_one_line(cli: Cli, folder: Path) -> None:
    words = ("audit", folder, "--only", "accuracy", "--limit", "60")
    ran = cli(*words, "--precision", "bf16", "--channels-last", "--json")
    assert ran.code == 0
    switches = json.loads(ran.out)["meta"]["throughput"]
    assert switches == {"precision": "bf16", "channels_last": True, "compile": False}
    wrong = cli(*words, "--precision", "bf61")
    assert wrong.code == 2
    assert "unknown precision 'bf61'; did you mean 'bf16'?" in wrong.complaint()
    shown = cli("audit", "--help").out
    assert all(
        option in shown for option in ("--precision", "--channels-last", "--compile", "--plan", "--jobs", "--on")
    )


def test_a_repair_in_two_processes(cli: Cli, digits: Subject, tmp_path: Path) -> None:
    with seeded(0, "start"):
        model = MLP(hidden=(16,))
    assert digits.train is not None
    subject = Subject(model, digits.test[:80], digits.train[:100], digits.holdout, digits.recipe, name="small")
    words = ("repair", subject.save(tmp_path / "small"), "--only", "accuracy", "--no-control", "--json")
    method = "training.Supervised:epochs=4,batch_size=50,lr=0.02"
    one, two = (json.loads(cli(*words, "--with", method, "--processes", k).out) for k in (1, 2))
    for key in ("before", "after"):
        assert one["rows"][0][key] == pytest.approx(two["rows"][0][key], abs=0.03)
    assert one["rows"][0]["before"] != one["rows"][0]["after"]
    wrong = cli(*words, "--with", "calibrate.TemperatureScaling", "--processes", 2)
    assert wrong.code == 2
    assert "calibrate.TemperatureScaling (calibrator); expected a training method" in wrong.complaint()
