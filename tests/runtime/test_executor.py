"""Pieces of work on shared objects: the same results anywhere, and what a lost worker held runs again."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from joblib import Parallel, delayed
from torch import nn

from assay.runtime.errors import AssayError, InputError
from assay.runtime.executor import AHEAD, MAPPED, Work, run_shared

BIG = MAPPED // 4 + 3


class Heavy:
    """An object that counts how often it travels."""

    def __init__(self, log: Path) -> None:
        self.log, self.x, self.model = log, torch.arange(BIG, dtype=torch.float32), nn.Linear(3, 2)

    def __getstate__(self) -> dict[str, Any]:
        with self.log.open("a") as file:
            file.write("sent\n")
        return self.__dict__


def total(heavy: Heavy, number: int) -> float:
    return float(heavy.x.sum()) + float(heavy.model.weight.detach().sum()) + number


def test_many_pieces_send_what_they_share_once(tmp_path: Path) -> None:
    heavy = Heavy(tmp_path / "log")
    works = [Work(total, ("heavy",), partial(tuple, [k])) for k in range(8)]
    here = dict(run_shared(works, {"heavy": heavy}))
    there = dict(run_shared(works, {"heavy": heavy}, jobs=2))
    assert here == there == {k: total(heavy, k) for k in range(8)}
    assert heavy.log.read_text() == "sent\n"


def changed(heavy: Heavy, number: int) -> tuple[float, int]:
    before = float(heavy.x[0])
    heavy.x[0] = 5.0
    time.sleep(0.2)
    return before, os.getpid()


def test_what_a_worker_changes_stays_in_it(tmp_path: Path) -> None:
    heavy = Heavy(tmp_path / "log")
    works = [Work(changed, ("heavy",), partial(tuple, [k])) for k in range(6)]
    found = dict(run_shared(works, {"heavy": heavy}, jobs=2)).values()
    for pid in {pid for _, pid in found}:
        assert sorted(before for before, other in found if other == pid)[0] == 0.0
        assert sum(before == 0.0 for before, other in found if other == pid) == 1
    assert float(heavy.x[0]) == 0.0


def dies(folder: Path, number: int, deadly: int, times: int) -> int:
    """Ends its process ``times`` times at the piece ``deadly``, and notes each piece that it finishes."""
    deaths = folder / "deaths"
    if number == deadly and (len(deaths.read_text()) if deaths.exists() else 0) < times:
        with deaths.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "finished").open("a") as file:
        file.write(f"{number}\n")
    return number * number


def mortal(folder: Path, times: int) -> list[Work]:
    return [Work(dies, (), partial(tuple, [folder, k, 5, times])) for k in range(12)]


def test_a_killed_worker_loses_nothing_and_repeats_only_what_it_held(tmp_path: Path) -> None:
    found = dict(run_shared(mortal(tmp_path, 1), {}, jobs=2))
    assert found == {k: k * k for k in range(12)}
    assert (tmp_path / "deaths").read_text() == "x"
    ran = (tmp_path / "finished").read_text().split()
    assert set(ran) == {str(k) for k in range(12)}
    assert len(ran) - 12 <= 4  # at most what was under way


def test_workers_that_keep_dying_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="--jobs 2: 2 workers in a row failed") as error:
        list(run_shared(mortal(tmp_path, 99), {}, jobs=2, retries=1))
    assert "\n" not in str(error.value)


def refuse(number: int) -> int:
    raise InputError(f"piece {number}: refused")


def test_what_a_piece_raises_is_raised_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^piece 1: refused$"):
        list(run_shared([Work(refuse, (), partial(tuple, [1]))] * 2, {}, jobs=2))


def test_blocks_are_cut_when_they_are_sent() -> None:
    cut: list[int] = []

    def given(k: int) -> tuple[int]:
        cut.append(k)
        return (k,)

    stream = run_shared([Work(abs, (), partial(given, k)) for k in range(20)], {}, jobs=2)
    first, _ = next(stream)
    assert len(cut) <= 2 * AHEAD
    assert sorted([first, *(k for k, _ in stream)]) == sorted(cut) == list(range(20))


@pytest.mark.parametrize(("options", "said"), [({"jobs": 0}, "jobs=0"), ({"on": "rey"}, "did you mean 'ray'")])
def test_bad_options_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_shared([], {}, **options)


def test_the_pool_is_one_that_joblib_can_take_over(tmp_path: Path) -> None:
    works = [Work(total, ("heavy",), partial(tuple, [k])) for k in range(3)]
    for _ in range(2):
        assert len(dict(run_shared(works, {"heavy": Heavy(tmp_path / "log")}, jobs=2))) == 3
        assert Parallel(n_jobs=2)(delayed(abs)(-k) for k in range(4)) == [0, 1, 2, 3]
