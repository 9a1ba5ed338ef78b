"""The README's Hugging Face example: its script writes a checkpoint that learned, and it is read as a subject."""

import runpy
from pathlib import Path

import pytest

import assay
from assay.runtime.inference import predict

ROOT = Path(__file__).parents[2]


def test_the_script_writes_a_checkpoint_that_learned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    runpy.run_path(str(ROOT / "docs" / "hf_example.py"))["main"](str(tmp_path / "vit"), epochs=4)
    assert capfd.readouterr() == ("", "")
    subject = assay.load(f"hf:{tmp_path / 'vit'}", data="digits", train="digits")
    assert (predict(subject.model, subject.test.x).argmax(1) == subject.test.y).double().mean() > 0.2  # chance is 0.1
    assert subject.training("the test").name == "digits:train"


def test_the_readme_names_the_script_and_its_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python docs/hf_example.py runs/digits-vit\nassay audit hf:runs/digits-vit --data digits" in readme
