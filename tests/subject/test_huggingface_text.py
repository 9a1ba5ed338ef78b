"""Hugging Face classifiers of texts: real checkpoints, audited; what perturbs pixels is skipped, and says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_checkpoints as made
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

import assay
from assay.audit import plan
from assay.data import Data
from assay.data.text import decoded, text_data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import Subject
from assay.subject.huggingface import load_hf

MEASURED = (
    "accuracy",
    "subgroups",
    "calibration",
    "uncertainty",
    "ood",
    "privacy",
    "hygiene",
    "geometry",
    "compression",
)
SKIPPED = ("robustness", "corruption", "certified", "explanation", "adversarial_detection")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "bert"
    made.bert(folder)
    return folder


@pytest.fixture(scope="module")
def subject(bert: Path) -> Subject:
    data = made.texts(260)
    return load_hf(str(bert), {"test": data[:160], "holdout": None, "train": data[160:]})


def test_logits_are_those_of_the_tokenizer_and_the_model(bert: Path) -> None:
    data = made.texts(50)
    subject = load_hf(str(bert), {"test": data, "holdout": data})
    encoded = AutoTokenizer.from_pretrained(bert)(decoded(data.x), padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = AutoModelForSequenceClassification.from_pretrained(bert).eval()(**encoded).logits
    torch.testing.assert_close(predict(subject.model, subject.test.x), theirs, atol=1e-5, rtol=1e-5)
    states = subject.model.hidden_states(subject.test.x[:3])
    assert [tuple(s.shape) for s in states] == [(3, encoded["input_ids"].shape[1], 16)] * 3
    # Padding changes nothing: a text alone gets the logits that it gets among longer ones.
    short = int((encoded["attention_mask"].sum(1)).argmin())
    alone = subject.test.x[short : short + 1, : int(encoded["attention_mask"][short].sum())]
    torch.testing.assert_close(predict(subject.model, alone), theirs[short : short + 1], atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_to_what_the_network_takes(bert: Path) -> None:
    data = text_data(["good film " * 40, "bad"], torch.tensor([1, 0]), ("negative", "positive"), "long")
    subject = load_hf(str(bert), {"test": data})
    assert subject.test.shape == (16,)


def test_a_checkpoint_is_audited_and_the_rest_says_why_not(subject: Subject) -> None:
    audit = assay.audit(subject, only=MEASURED + SKIPPED, limit=100)
    for name, section in audit.sections.items():
        skipped = "measures classification; the subject's task is text-classification"
        assert section.skipped == (skipped if name.startswith(SKIPPED) else None), name
    kept = subject.test.limit(100)
    right = predict(subject.model, kept.x).argmax(1) == kept.y
    assert audit["accuracy.top1"].value == pytest.approx(float(right.double().mean()))
    assert {m.name for m in audit.sections["hygiene"].metrics} >= {
        "hygiene.duplicates.across",
        "hygiene.label_shift.tv",
    }
    assert not any("near_duplicates" in m.name for m in audit.sections["hygiene"].metrics)
    assert {row.name for row in plan(subject) if row.skipped is None} >= set(MEASURED)


def test_it_is_trained_and_calibrated_but_not_attacked(subject: Subject, tmp_path: Path) -> None:
    methods = [assay.training.Supervised(steps=4), assay.calibrate.TemperatureScaling()]
    kept: list[Subject] = []
    effects = assay.repair(
        subject, *methods, only=["accuracy", "calibration"], on_model=lambda r: kept.append(r.steps[-1][1])
    )
    assert any(row.before != row.after for row in effects.rows)
    back = assay.load(kept[0].save(tmp_path / "repaired"))
    assert (back.task, back.test.hash) == ("text-classification", subject.test.hash)
    assert predict(back.model, back.test.x).equal(predict(kept[0].model, subject.test.x))
    with pytest.raises(InputError, match="token ids have no gradient"):
        assay.repair(subject, assay.defenses.TRADES(steps=1), only=["accuracy"])


def test_token_ids_are_data_too(bert: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(5, 14, (40, 7)).astype(np.float32)
    arrays = {
        "x": x,
        "y": np.arange(40) % 2,
        "classes": np.array(["positive", "negative"]),
        "bounds": np.array([0, 13]),
    }
    np.savez(tmp_path / "ids.npz", **arrays)
    subject = assay.load(f"hf:{bert}", data=f"npz:{tmp_path / 'ids.npz'}")
    assert subject.test.shape == (7,)
    assert subject.model.order == (1, 0)
    far = Data(torch.from_numpy(x + 1), subject.test.y.new_tensor(arrays["y"]), ("a", "b"), (0.0, 99.0))
    with pytest.raises(InputError, match="holds token 14; expected ids from 0 to 13"):
        load_hf(str(bert), {"test": far})
    with pytest.raises(InputError, match=r"holds \(7,\) numbers a sample; expected texts or token ids"):
        load_hf(str(bert), {"test": replace(far, x=far.x / 2)})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer; expected tokenizer.json"),
    "no padding": (
        lambda f: PreTrainedTokenizerFast(tokenizer_file=str(f / "tokenizer.json")).save_pretrained(f),
        "no token for padding",
    ),
    "junk tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "no usable tokenizer"),
    "own tokenizer": (
        lambda f: made.edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Mine", None]}),
        r"tokenizer_config\.json asks for code of its own",
    ),
    "pickled weights": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pytorch_model.bin"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_gives_one_line(
    name: str, bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGES[name]
    shutil.copytree(bert, tmp_path / "bert")
    damage(tmp_path / "bert")
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        load_hf(str(tmp_path / "bert"), {"test": made.texts(10)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
