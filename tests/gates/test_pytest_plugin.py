"""The pytest plug-in, in a pytest run of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import assay
from assay.audit.property import Section
from assay.audit.result import Audit
from assay.pytest_plugin import assert_metric
from assay.runtime.errors import InputError
from assay.runtime.metric import Metric

TESTS = """
import pytest
from assay.pytest_plugin import assert_metric

OPTIONS = {"only": ["accuracy"], "limit": 60}


def test_good_enough(assay_audit):
    assert_metric(assay_audit("digits", **OPTIONS), "accuracy.top1", at_least=0.5)


def test_too_good_to_be_true(assay_audit):
    assert_metric(assay_audit("digits", **OPTIONS), "accuracy.top1", at_least=1.5)


def test_the_same_audit_is_made_once(assay_audit, tmp_path):
    import assay

    first = assay_audit("digits", **OPTIONS)
    assert assay_audit("digits", **OPTIONS) is first
    assert assay_audit(assay.load("digits"), **OPTIONS) is first
    assert assay_audit("digits", **{**OPTIONS, "limit": 61}) is not first
    assert_metric(first.save(tmp_path / "saved"), "accuracy.top1", at_least=0.5)
"""
LIGHT = "import sys; import assay.pytest_plugin; assert not {'torch', 'numpy'} & set(sys.modules)"


def made() -> Audit:
    metrics = [Metric("calibration.ece", 0.08, 0.06, 0.11, better="lower"), Metric("lost", None)]
    return Audit("m", "quick", 0, {"calibration": Section(metrics=metrics)}, {"calibration": "Calibration"})


def test_bounds_may_be_one_or_two_and_on_an_end_of_the_interval() -> None:
    assert_metric(made(), "calibration.ece", at_most=0.08)
    assert_metric(made(), "calibration.ece", at_least=0.08, at_most=0.08)
    assert_metric(made(), "calibration.ece", at_most=0.11, part="high")
    with pytest.raises(AssertionError, match=r"high\(calibration.ece\) <= 0.1: observed 0.08 \[0.06, 0.11\]"):
        assert_metric(made(), "calibration.ece", at_most=0.1, part="high")


def test_a_failure_shows_value_interval_and_bound() -> None:
    with pytest.raises(AssertionError) as error:
        assert_metric(made(), "calibration.ece", at_most=0.05)
    assert str(error.value) == "m: calibration.ece <= 0.05: observed 0.08 [0.06, 0.11]"
    with pytest.raises(AssertionError, match="lost >= 0: no value was resolved"):
        assert_metric(made(), "lost", at_least=0)


def test_a_wrong_assertion_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"did you mean 'calibration\.ece'"):
        assert_metric(made(), "calibration.ec", at_most=1)
    with pytest.raises(InputError, match="expected at_least, at_most or both"):
        assert_metric(made(), "calibration.ece")
    with pytest.raises(InputError, match="unknown part"):
        assert_metric(made(), "calibration.ece", at_most=1, part="middle")


def test_the_plugin_works_in_a_run_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "test_model.py").write_text(TESTS)
    options = ["-p", "assay.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull]
    env = {**os.environ, "PYTHONPATH": str(Path(assay.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whether the installation knows the entry point or not
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 1
    assert "1 failed, 2 passed" in ran.stdout
    assert re.search(r"AssertionError: digits: accuracy.top1 >= 1.5: observed 0.9\d* \[0\.\d+, 0\.\d+\]", ran.stdout)
    assert "pytest_plugin.py:" not in ran.stdout  # the failure points at the test


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    assert subprocess.run([sys.executable, "-c", LIGHT], check=False).returncode == 0
