"""What a code hash depends on: the code that is reached, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.runtime import codehash
from assay.runtime.codehash import closure, code_hash, source_hash

FILES = {
    "room/__init__.py": "from assay.room.one import One\nfrom assay.room.two import Two as Second\n__all__ = ['One']\n",
    "room/one.py": 'class One:\n    """Doc."""\n    x = 1\n',
    "room/two.py": "from assay.base import f\nTwo = f\n",
    "base.py": "def f():\n    return 1\n",
    "user.py": "import torch\nfrom assay.room import One\nmade = One()\n",
    "other.py": "def g():\n    from assay.room import Second\n    return Second\n",
    "whole.py": "from assay import room\n",
    "tools.py": "SHAPES = {}\nSHAPES['a'] = 1\ndef used():\n    return helper\ndef helper():\n    return 1\n"
    "def spare():\n    return 2\n",
    "picks.py": "from assay.tools import used\ndef run():\n    return used()\ndef draw():\n    return spare\n"
    "from assay import tools\ndef both():\n    return tools.spare()\n",
    "passes.py": "from assay.tools import used as handed\n",
    "indirect.py": "from assay.passes import handed\nimport assay.base\ndef run():\n    return handed()\n"
    "def dotted():\n    return assay.base.f()\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(codehash, "ROOT", tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    _clear()
    yield
    _clear()


def _clear() -> None:
    caches = (codehash._tree, codehash._reexports, codehash._bindings, codehash._imported, codehash.reached)
    for cached in (*caches, closure, source_hash, code_hash):
        cached.cache_clear()


def _hash_after(package: Path, file: str, text: str, module: str = "assay.user", *roots: str) -> str:
    (package / file).write_text(text)
    _clear()
    return source_hash(module, roots or ("*",))


def test_names_are_followed_to_where_they_are_defined(package: Path) -> None:
    assert closure("assay.user") == ("assay.room.one", "assay.user")
    assert closure("assay.other") == ("assay.base", "assay.other", "assay.room.two")
    assert closure("assay.whole") == ("assay.base", "assay.room", "assay.room.one", "assay.room.two", "assay.whole")


def test_only_code_that_is_reached_counts(package: Path) -> None:
    before = source_hash("assay.user")
    assert _hash_after(package, "room/two.py", "Two = 2\n") == before
    assert (
        _hash_after(package, "room/__init__.py", FILES["room/__init__.py"] + "from assay.room.new import New\n")
        == before
    )
    assert _hash_after(package, "room/one.py", "# why\nclass One:\n\n    '''Other.'''\n    x = (1)\n") == before
    assert _hash_after(package, "room/one.py", "class One:\n    x = 2\n") != before


def test_of_a_module_only_what_is_used_counts_and_what_always_runs(package: Path) -> None:
    assert codehash.reached("assay.picks", ("run",)) == (
        ("assay.picks", ""),
        ("assay.picks", "run"),
        ("assay.tools", ""),
        ("assay.tools", "SHAPES"),
        ("assay.tools", "helper"),
        ("assay.tools", "used"),
    )
    before, text = source_hash("assay.picks", ("run",)), FILES["tools.py"]
    for change, same in (
        (text + "def more():\n    return 3\n", True),
        (text.replace("return 2", "return 3"), True),
        (text.replace("return 1", "return 3"), False),
        (text.replace("= 1", "= 2"), False),
    ):
        assert (_hash_after(package, "tools.py", change, "assay.picks", "run") == before) is same
    assert ("assay.tools", "spare") in codehash.reached("assay.picks", ("both",))
    assert ("assay.tools", "helper") not in codehash.reached("assay.picks", ("both",))


def test_names_that_a_module_passes_on_and_dotted_imports_are_followed(package: Path) -> None:
    assert ("assay.tools", "helper") in codehash.reached("assay.indirect", ("run",))
    assert ("assay.base", "f") in codehash.reached("assay.indirect", ("dotted",))
    assert ("assay.base", "f") not in codehash.reached("assay.indirect", ("run",))


def test_the_closure_of_a_property_holds_what_it_calls_and_not_the_command_line() -> None:
    names = closure("assay.audit.accuracy")
    assert "assay.runtime.statistics" in names
    assert not any(n.startswith("assay.cli") for n in names)
    assert code_hash("assay.audit.accuracy") != code_hash("assay.runtime.errors")


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"assay\.nothing"):
        source_hash("assay.nothing")
