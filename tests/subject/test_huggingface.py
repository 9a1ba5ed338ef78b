"""Hugging Face image classifiers: real checkpoints, audited; and what is refused, in one line each."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_checkpoints as made
import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BertForMaskedLM,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    ViTImageProcessor,
    ViTModel,
)

import assay
from assay.cli import main
from assay.data import Data, load_data
from assay.runtime.errors import InputError
from assay.runtime.inference import predict
from assay.subject import Subject, fresh
from assay.subject.huggingface import ImageClassifier, load_hf
from assay.subject.huggingface.adapter import match
from assay.subject.huggingface.image import check_pixels, steps
from assay.subject.options import options_hash
from assay.subject.subject import model_hash

KEPT = ["accuracy", "subgroups", "calibration", "uncertainty", "robustness.linf", "corruption", "ood", "geometry"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "vit"
    made.vit(folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "resnet"
    made.resnet(folder)
    return folder


@pytest.fixture(scope="module")
def subject(vit: Path) -> Subject:
    return assay.load(f"hf:{vit}", data="digits", train="digits")


def as_hugging_face(folder: Path, data: Data) -> torch.Tensor:
    """Logits by the checkpoint's own processor and model, on grey images as colour bytes."""
    images = (data.x * 255).round().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.no_grad():
        return AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels).logits


def bytes_of(data: Data) -> Data:
    return data.with_x((data.x * 255).round() / 255)


def test_logits_are_those_of_the_processor_and_the_model(subject: Subject, vit: Path, resnet: Path) -> None:
    data = bytes_of(subject.test[:50])
    torch.testing.assert_close(predict(subject.model, data.x), as_hugging_face(vit, data), atol=1e-5, rtol=1e-5)
    resized = assay.load(str(resnet), data="digits")  # a folder with a config.json needs no prefix
    mine, theirs = predict(resized.model, data.x), as_hugging_face(resnet, data)
    assert (mine - theirs).abs().max() < 0.02 * theirs.std()  # Pillow rounds to bytes between its two passes


PROCESSORS = {
    "smaller": ViTImageProcessor(size={"height": 16, "width": 16}),
    "bicubic": ViTImageProcessor(size={"height": 40, "width": 21}, resample=3),
    "padded": CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 33, "width": 51}),
    "cut": ConvNextImageProcessor(size={"shortest_edge": 24}),
    "squeezed": ConvNextImageProcessor(size={"shortest_edge": 384}),
    "not normalised": ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
    "bytes": ViTImageProcessor(do_resize=False, do_rescale=False, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_step_of_a_processor_is_met_on_photographs(name: str) -> None:
    from assay.data.outsets import photo_patches

    shape = Data(torch.zeros(2, 3, 32, 24), torch.tensor([0, 1]), ("a", "b"))
    data = bytes_of(shape[torch.tensor([0, 1, 0, 1])].with_x(photo_patches(shape, 4)))
    model = ImageClassifier(made.vit_config().to_json_string(), **steps(PROCESSORS[name], 32, 24, name))
    check_pixels(model, PROCESSORS[name], data, name)
    moved = ImageClassifier(made.vit_config().to_json_string(), **steps(PROCESSORS[name], 32, 24, name))
    moved.scale *= 1.1
    with pytest.raises(InputError, match="differ by"):
        check_pixels(moved, PROCESSORS[name], data, name)


def test_gradients_and_hidden_states(subject: Subject, resnet: Path) -> None:
    x = subject.test.x[:3].clone().requires_grad_()
    states = subject.model.hidden_states(x)
    assert [tuple(s.shape) for s in states] == [(3, 5, 16)] * 3  # four patches and the class token
    assert not any(m._forward_hooks for m in subject.model.modules())
    (grad,) = torch.autograd.grad(states[1].sum(), x)
    assert bool((grad.flatten(1) != 0).any(1).all())
    resized = assay.load(f"hf:{resnet}", data="digits").model
    (grad,) = torch.autograd.grad(resized(x).square().sum(), x)
    assert bool((grad.flatten(1) != 0).any(1).all())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_checkpoint_is_audited(name: str, request: pytest.FixtureRequest) -> None:
    given = assay.load(f"hf:{request.getfixturevalue(name)}", data="digits", train="digits")
    audit = assay.audit(given, only=KEPT, limit=60)
    assert {n: s.skipped for n, s in audit.sections.items() if s.skipped} == {}
    right = predict(given.model, given.test.limit(60).x).argmax(1) == given.test.limit(60).y
    assert audit["accuracy.top1"].value == pytest.approx(float(right.double().mean()))
    assert audit["robustness.linf.accuracy@0.2"].value <= audit["accuracy.top1"].value


def test_the_command_line_prints_an_audit_and_nothing_of_transformers(
    vit: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", f"hf:{vit}", "--data", "digits", "--only", "accuracy", "--limit", "60", "--json"]
    monkeypatch.setattr(sys, "argv", ["assay", *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr()
    assert ended.value.code == 0
    assert json.loads(told.out)["name"] == f"hf:{vit}"
    assert all(line.startswith("assay: ") for line in told.err.splitlines())


def test_saving_and_loading_gives_the_same_logits(subject: Subject, resnet: Path, tmp_path: Path) -> None:
    for k, given in enumerate((subject, assay.load(f"hf:{resnet}", data="digits"))):
        back = assay.load(given.save(tmp_path / str(k)))
        assert predict(back.model, back.test.x).equal(predict(given.model, given.test.x))
        assert (model_hash(back.model), options_hash(back.model)) == (
            model_hash(given.model),
            options_hash(given.model),
        )
        assert back.test.hash == given.test.hash
    other = fresh(subject.model, seed=1)
    assert model_hash(other) == model_hash(fresh(subject.model, seed=1)) != model_hash(subject.model)


def test_a_checkpoint_is_repaired(subject: Subject, tmp_path: Path) -> None:
    before = model_hash(subject.model)
    small = replace(subject, train=subject.training("the test")[:300])
    methods = [assay.defenses.TRADES(steps=5, eps=0.1, attack_steps=2), assay.calibrate.TemperatureScaling()]
    kept: list[Subject] = []
    effects = assay.repair(
        small, *methods, only=["accuracy", "calibration"], limit=60, on_model=lambda r: kept.append(r.steps[-1][1])
    )
    assert any(row.before != row.after for row in effects.rows)
    assert model_hash(subject.model) == before
    back = assay.load(kept[0].save(tmp_path / "repaired"))
    assert predict(back.model, back.test.x).equal(predict(kept[0].model, kept[0].test.x))


def test_labels_are_matched_by_name_then_by_place() -> None:
    assert match(["Cat", "dog", "eel"], ["eel", "cat", "Dog"], "m") == (2, 0, 1)
    assert match(["a", "b"], ["A", "B"], "m") is None
    assert match(["LABEL_0", "LABEL_1"], ["cat", "dog"], "m") is None
    assert match(["car", "cat"], ["automobile", "cat"], "m") is None
    with pytest.raises(InputError, match="'cat' at the same place"):
        match(["car", "cat"], ["cat", "dog"], "m")
    with pytest.raises(InputError, match="3 labels are a, b, c; the data's 2 classes are x, y"):
        match(["a", "b", "c"], ["x", "y"], "m")


def test_classes_in_another_order_get_their_own_outputs(vit: Path, tmp_path: Path) -> None:
    shutil.copytree(vit, tmp_path / "vit")
    names = [str((k + 3) % 10) for k in range(10)]
    made.edit(tmp_path / "vit" / "config.json", id2label=dict(enumerate(names)), label2id=None)
    data = load_data("digits")[:40]
    moved = load_hf(str(tmp_path / "vit"), {"test": data}).model
    plain = load_hf(str(vit), {"test": data}).model
    order = [names.index(c) for c in data.classes]
    assert predict(moved, data.x).equal(predict(plain, data.x)[:, order])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def encoder(folder: Path) -> None:
    ViTModel(made.vit_config()).save_pretrained(folder)
    made.edit(folder / "config.json", architectures=["ViTForImageClassification"])


def language_model(folder: Path) -> None:
    made.bert(folder)
    BertForMaskedLM.from_pretrained(folder).save_pretrained(folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled weights": (pickled, r"only pytorch_model\.bin, which is not read; expected model\.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights; expected model"),
    "junk weights": (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "weights cannot be read"),
    "no head": (encoder, r"2 tensors of its weights are missing \(classifier"),
    "another head": (
        lambda f: made.edit(f / "config.json", patch_size=2),
        r"2 tensors of its weights do not fit \(vit\.embeddings",
    ),
    "spare layers": (lambda f: made.edit(f / "config.json", num_hidden_layers=1), "weights are spare"),
    "no config": (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
    "no model type": (lambda f: made.edit(f / "config.json", model_type=None), "names no model_type"),
    "odd model type": (lambda f: made.edit(f / "config.json", model_type="vitt"), "model type 'vitt'"),
    "impossible sizes": (lambda f: made.edit(f / "config.json", num_attention_heads=3), "weights do not fit"),
    "wrong kinds": (lambda f: made.edit(f / "config.json", hidden_size="big"), "model type 'vit'"),
    "own code": (lambda f: made.edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), "code of its own"),
    "own processor": (
        lambda f: made.edit(
            f / "preprocessor_config.json", image_processor_type="Mine", auto_map={"AutoImageProcessor": "x.Mine"}
        ),
        r"preprocessor_config\.json asks for code of its own",
    ),
    "odd processor": (
        lambda f: made.edit(f / "preprocessor_config.json", image_processor_type="Mine"),
        "no usable image processor",
    ),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "expected preprocessor_config.json"),
    "odd filter": (
        lambda f: made.edit(f / "preprocessor_config.json", resample=1, size={"height": 4, "width": 4}),
        r"PIL's filter 1; expected bilinear \(2\)",
    ),
    "no classifier": (language_model, "architecture is BertForMaskedLM; expected one ForImageClassification"),
    "several labels": (
        lambda f: made.edit(f / "config.json", problem_type="multi_label_classification"),
        "expected single_label",
    ),
    "nine labels": (lambda f: made.vit(f, num_labels=9), "9 labels are LABEL_0.*10 classes are 0, 1"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_gives_one_line(
    name: str, vit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGES[name]
    shutil.copytree(vit, tmp_path / "vit")
    damage(tmp_path / "vit")
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        assay.load(f"hf:{tmp_path / 'vit'}", data="digits")
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_other_data_are_refused(vit: Path) -> None:
    with pytest.raises(InputError, match="a bare model; expected --data"):
        assay.load(f"hf:{vit}")
    flat = replace(load_data("digits")[:20], x=torch.zeros(20, 64))
    for data, message in ((flat, r"shape \(64,\)"), (made.texts(20, tuple("0123456789")), "has texts")):
        with pytest.raises(InputError, match=message):
            load_hf(str(vit), {"test": data})
    with pytest.raises(InputError, match="no such folder; expected a checkpoint's folder, or owner/name"):
        assay.load("hf:/no/such/folder", data="digits")


def test_a_model_of_the_hub_is_fetched_without_what_is_pickled(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(vit, tmp_path / "hub" / "somebody" / "tiny-vit")
    (tmp_path / "hub" / "somebody" / "tiny-vit" / "pytorch_model.bin").write_bytes(b"pickled")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with made.hub(tmp_path / "hub") as (address, asked):
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        capfd.readouterr()
        subject = assay.load("hf:somebody/tiny-vit", data="digits")
        assert capfd.readouterr() == ("", "")
        with pytest.raises(InputError, match=r"neither a folder nor fetched from the hub") as caught:
            assay.load("hf:somebody/else", data="digits")
    assert "\n" not in str(caught.value)
    assert set(asked) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    local = assay.load(f"hf:{vit}", data="digits")
    assert model_hash(subject.model) == model_hash(local.model)
    assert subject.name == "hf:somebody/tiny-vit"
