"""A change of any code that a model runs gives it another identity; the same code gives the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from assay.audit.run import fingerprint
from assay.data import load_data
from assay.nets import MLP
from assay.subject import Subject
from assay.subject.code import running_code

KINDS = {  # what the module holds besides Net's forward; NUMBER is what changes
    "global": ("SCALE = NUMBER", "SCALE * x"),
    "global set": ("SCALES = {'a', 'b', 'c', NUMBER}", "x * len(SCALES)"),
    "helper": ("def scaled(x): return x * NUMBER", "scaled(x)"),
    "helper of a helper": (
        "def inner(x): return x * NUMBER\ndef scaled(x): return [inner(y) for y in [x]][0]",
        "scaled(x)",
    ),
    "recursive helper": ("def down(x, n): return x * NUMBER if n == 0 else down(x, n - 1)", "down(x, 3)"),
    "helper class": ("class Scaled:\n    def __call__(self, x): return x * NUMBER", "Scaled()(x)"),
    "helper object": ("class Holder:\n    def __init__(self): self.by = NUMBER\nHOLDER = Holder()", "x * HOLDER.by"),
    "helper module": ("", "helping_module.scaled(x)"),
    "global array": ("import numpy as np\nSCALE = np.full(2, NUMBER)", "x * float(SCALE[0])"),
    "global layer": (
        "LAYER = nn.Linear(1, 1, bias=False)\nnn.init.constant_(LAYER.weight, NUMBER)",
        "x * LAYER.weight[0, 0]",
    ),
    "property": ("", "x * self.by", "@property\n    def by(self): return NUMBER"),
    "static method": ("", "self.by(x)", "@staticmethod\n    def by(x): return x * NUMBER"),
    "class method": ("", "self.by(x)", "@classmethod\n    def by(cls, x): return x * NUMBER"),
    "class attribute": ("", "x * self.by", "by = NUMBER"),
    "default argument": ("", "self.by(x)", "def by(self, x, k=NUMBER): return x * k"),
    "keyword default": ("", "self.by(x)", "def by(self, x, *, k=NUMBER): return x * k"),
    "cached property": (
        "import functools",
        "x * self.by",
        "@functools.cached_property\n    def by(self): return NUMBER",
    ),
}
HEAD = "import functools\nimport torch\nfrom torch import nn\nimport helping_module\n"
WHOLE = {
    "inherited forward": (
        "class Base(nn.Module):\n    def forward(self, x): return x * NUMBER\nclass Net(Base):\n    pass\n"
        "def make(): return Net()\n"
    ),
    "decorated forward": (
        "def twice(f):\n    @functools.wraps(f)\n    def inner(self, x): return f(self, f(self, x))\n    return inner\n"
        "class Net(nn.Module):\n    @torch.no_grad()\n    @twice\n    def forward(self, x): return x * NUMBER\n"
        "def make(): return Net()\n"
    ),
    "decorator": (
        "def times(f):\n    @functools.wraps(f)\n    def inner(self, x): return NUMBER * f(self, x)\n    return inner\n"
        "class Net(nn.Module):\n    @times\n    def forward(self, x): return x\n"
        "def make(): return Net()\n"
    ),
    "forward hook": (
        "def make():\n    net = nn.ReLU()\n    net.register_forward_hook(lambda m, i, o: o * NUMBER)\n    return net\n"
    ),
    "forward pre-hook": (
        "def hook(module, given): return given[0] * NUMBER\n"
        "def make():\n    net = nn.ReLU()\n    net.register_forward_pre_hook(hook)\n    return net\n"
    ),
    "held object": (
        "class Scaled:\n    def __call__(self, x): return x * NUMBER\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.by = Scaled()\n"
        "    def forward(self, x): return self.by(x)\ndef make(): return Net()\n"
    ),
}


def _source(kind: str) -> str:
    if kind in WHOLE:
        return HEAD + WHOLE[kind]
    before, result, *members = KINDS[kind]
    body = "".join(f"    {m}\n" for m in members)
    return (
        f"{HEAD}{before}\nclass Net(nn.Module):\n{body}    def forward(self, x): return {result}\n"
        "def make(): return Net()\n"
    )


def _made(tmp_path: Path, source: str, number: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of the module that a fresh process would see."""
    text = source.replace("NUMBER", str(number))
    for name in ("helping_module", "user_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    folder = tmp_path / str(number)
    folder.mkdir(exist_ok=True)
    (folder / "helping_module.py").write_text(f"def scaled(x): return x * {number}\n")
    (folder / "user_module.py").write_text(text)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        return __import__("user_module").make()


@pytest.mark.parametrize("kind", [*KINDS, *WHOLE])
def test_a_change_of_code_is_another_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(kind)
    assert "NUMBER" in source or kind == "helper module"
    data = load_data("digits")[:10]
    one, again, other = (fingerprint(Subject(_made(tmp_path, source, k, monkeypatch), data)) for k in (2, 2, 3))
    assert one == again != other


def test_the_identity_is_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [*KINDS, *WHOLE]
    for k, kind in enumerate(kinds):
        (tmp_path / f"user_module{k}.py").write_text(_source(kind).replace("NUMBER", "2"))
    (tmp_path / "helping_module.py").write_text("def scaled(x): return x * 2\n")
    expression = f"[running_code(import_module(f'user_module{{k}}').make()) for k in range({len(kinds)})]"
    program = (
        "import json; from importlib import import_module; from assay.subject.code import running_code\n"
        "print(json.dumps(" + expression + ")"
    )
    monkeypatch.delitem(sys.modules, "helping_module", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    here = [running_code(import_module(f"user_module{k}").make()) for k in range(len(kinds))]
    env = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTHONHASHSEED": "7",
    }
    there = subprocess.run([sys.executable, "-c", f"{program})"], env=env, capture_output=True, check=True)
    assert json.loads(there.stdout) == here


def test_weights_and_running_leave_the_code_as_it_is() -> None:
    net, other = MLP((4,), 3, (2,)), MLP((4,), 3, (2,))
    assert running_code(net) == running_code(other) == running_code(net.train()) != running_code(nn.Linear(4, 3))
