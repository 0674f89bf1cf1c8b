"""Stores that are refused or damaged: features that do not fit, files that do not read, and a full disk."""

import builtins
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_store import INFO, SMALL, add_all, change_lines, content, rows_of, write

import swift_edge
from swift_edge.errors import DiskSpaceError, StoreError
from swift_edge.training import CandidateRows, Store, StoreWriter

pytestmark = pytest.mark.usefixtures("quick_disk")


def states_with(value: float) -> list[CandidateRows]:
    rows = rows_of(0)
    states = rows[1].states.astype(np.float32)
    states[-1, 1, 2] = value
    return [rows[0], replace(rows[1], states=states), rows[2]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 70000.0])
def test_features_that_float16_does_not_hold_are_refused_and_the_rest_stays(tmp_path: Path, value: float) -> None:
    expected = r"hidden state 3 of candidate 1 of problem 0.*--layers"
    with StoreWriter(tmp_path, INFO) as writer, pytest.raises(StoreError, match=expected):
        writer.add(0, states_with(value))
    with StoreWriter(tmp_path, INFO) as writer:
        writer.add(0, states_with(65504.0))
        assert writer.done == 1


def test_a_token_that_cannot_come_is_refused_as_a_feature(tmp_path: Path) -> None:
    rows = rows_of(0)
    rows[2].statistics[0, 0] = -math.inf
    with StoreWriter(tmp_path, INFO) as writer, pytest.raises(StoreError, match="logprob of candidate 2 of problem 0"):
        writer.add(0, rows)
    # Self-certainty is infinite wherever a model rules tokens out, and no head reads it.
    rows = rows_of(0)
    rows[2].statistics[0, 2] = math.inf
    with StoreWriter(tmp_path, INFO) as writer:
        writer.add(0, rows)


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    rows = rows_of(0)
    with StoreWriter(tmp_path, INFO) as writer:
        with pytest.raises(StoreError, match="shapes"):
            writer.add(0, [replace(rows[0], states=rows[0].states[:, :1])])
        with pytest.raises(StoreError, match="expected problem 0 of 7"):
            writer.add(1, rows_of(1))
        with pytest.raises(StoreError, match="with at least one"):
            writer.add(0, [])


@pytest.mark.parametrize("name", ["states.npy", "statistics.npy", "tokens.npy", "positions.npy"])
@pytest.mark.parametrize("spoil", ["truncate", "remove", "replace", "text"])
def test_a_damaged_array_is_named(whole: Path, name: str, spoil: str) -> None:
    file = whole / f"shard-00001.{name}"
    data = file.read_bytes()
    if spoil == "truncate":
        file.write_bytes(data[:-1])
    elif spoil == "remove":
        file.unlink()
    elif spoil == "replace":
        np.save(file, np.zeros(3, np.float64))
    else:
        file.write_bytes(b"not an array")
    with pytest.raises(StoreError, match=f"shard-00001.{name}"):
        Store.open(whole)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[1].pop("correct"), "line 2 .*correct is missing"),
        (lambda rows: rows[0].update(correct=1), "line 1 .*correct is 1; expected true or false"),
        (lambda rows: rows[0].update(tokens=True), "tokens is true; expected an integer"),
        (lambda rows: rows[0].update(token_ids=[1, "2"]), r"token_ids\[1\] is .2.; expected an integer"),
        (lambda rows: rows[0].update(scores={"head": "good"}), "scores.head is .good.; expected a number"),
        (lambda rows: rows[0].update(text=5), "text is 5; expected a string"),
        (lambda rows: rows[0].update(tokens=10**30), "line 1 .*tokens is 1000.*expected an integer of at most 64 bits"),
        (lambda rows: rows[0].update(tokens=-1), "line 1 .*tokens is -1; expected a number of rows"),
        (lambda rows: rows[0].update(n_tokens=99), "line 1 .*n_tokens is 99; expected the number of token_ids"),
        (lambda rows: rows[1].update(token_ids=[2**31], n_tokens=1), "line 2 .*token_ids is 2147483648; expected ids"),
        (lambda rows: rows[1].update(token_ids=[-1], n_tokens=1), "line 2 .*token_ids is -1; expected ids"),
        (lambda rows: rows[0].update(logprob=10**400), "line 1 .*logprob is 1000.*expected a number"),
        (lambda rows: rows[2].update(logprob=math.nan), "line 3 .*NaN is no number of JSON"),
        (lambda rows: rows[0].update(text="\ud800"), "line 1 .*text has half a character"),
        (lambda rows: rows[0].update(index=10**18), "line 1 holds candidate 1000000000000000000"),
        (lambda rows: rows.__setitem__(0, [1]), r"the document is \[1\]; expected an object"),
        (lambda rows: rows.pop(0), "line 1 holds candidate 1"),
        (lambda rows: rows.pop(1), "line 2 holds candidate 2.*expected candidate 1"),
        (lambda rows: rows.clear(), "no lines"),
        (lambda rows: rows[0].update(tokens=rows[0]["tokens"] + 1), "states.npy"),
    ],
)
def test_damaged_lines_are_named(whole: Path, change: Any, reason: str) -> None:
    change_lines(whole, change)
    with pytest.raises(StoreError, match=f"shard-00001.*{reason}"):
        Store.open(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"PK\x03\x04" + data,  # NumPy would take it for an archive, which has no type
        lambda data: b"\x80\x04." + data,  # and this for a pickle
        lambda data: data[:6] + b"\x03" + data[7:],
        lambda data: data.replace(b"'<", b"'>", 1),
        lambda data: data[:20] + b"\xff" * 40 + data[60:],
        lambda data: data[:-1],
        lambda data: data + b"\0",
    ],
)
@pytest.mark.parametrize("name", ["states.npy", "statistics.npy", "tokens.npy", "positions.npy"])
def test_an_array_whose_header_is_damaged_is_one_line(whole: Path, name: str, damage: Any) -> None:
    file = whole / f"shard-00001.{name}"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StoreError, match=f"shard-00001.{name}"):
        Store.open(whole)


def test_an_array_in_the_order_of_fortran_is_not_read_in_the_other(whole: Path) -> None:
    file = whole / "shard-00001.states.npy"
    file.write_bytes(file.read_bytes().replace(b"False", b"True ", 1))
    with pytest.raises(StoreError, match="its first axis varies fastest"):
        Store.open(whole)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problems": 0}, "problems is 0; expected an integer of at least 1"),
        ({"n": -3}, "n is -3; expected an integer of at least 1, or null"),
        ({"task": "poetry"}, 'task is "poetry"; expected one of number, '),
        ({"width": -4}, "width is -4; expected an integer from 0"),
        ({"width": 10**12}, "width is 1000000000000; expected"),
        ({"width": 0}, "of a width, for hidden"),
        ({"layers": [3, 1]}, r"layers is \[3, 1\]; expected ascending"),
        ({"layers": []}, "expected some"),
        ({"seed": 10**30}, "seed is 1000.*at most 64 bits"),
        ({"sampling": {"temperature": math.nan}}, "NaN is no number of JSON"),
    ],
)
def test_settings_that_no_store_has_are_named(whole: Path, changes: dict[str, Any], reason: str) -> None:
    path = whole / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    for opening in (lambda: Store.open(whole), lambda: StoreWriter(whole, INFO)):
        with pytest.raises(StoreError, match=rf"store.json.*{reason}"):
            opening()


def test_no_store_and_damaged_settings_are_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(StoreError, match=r"holds no store.json.*swift-edge collect"):
            Store.open(path)
    text = (whole / "store.json").read_text(encoding="utf-8")
    for spoiled, reason in (
        (text[:-9], "not JSON"),
        ("[]", r"the document is \[\]; expected an object"),
        (text.replace('"seed": 0', '"seed": "0"'), "seed is .0.; expected an integer"),
        (text.replace('"hidden"', '"states"'), "feature is .states.; expected one of hidden, logits, none"),
        (text.replace('"n": 3,', ""), "n is missing"),
        (text.replace('"format_version": 1', '"format_version": 2'), "pip install --upgrade swift-edge"),
    ):
        (whole / "store.json").write_text(spoiled, encoding="utf-8")
        with pytest.raises(StoreError, match=reason):
            Store.open(whole)


class _FullFile:
    """A file on a disk that takes so many bytes."""

    def __init__(self, file: Any, room: list[int]) -> None:
        self._file = file
        self._room = room

    def write(self, data: Any) -> int:
        self._room[0] -= memoryview(data).nbytes
        if self._room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __enter__(self) -> "_FullFile":
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [100, 900, 2000, 3500])
def test_a_full_disk_is_said_and_what_is_complete_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write(tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    left = [room]
    opening = builtins.open

    def full(file: Any, *arguments: Any, **options: Any) -> Any:
        opened = opening(file, *arguments, **options)
        return _FullFile(opened, left) if "shard-" in str(file) else opened

    monkeypatch.setattr(builtins, "open", full)
    with StoreWriter(tmp_path / "parts", INFO, shard_bytes=SMALL) as writer:
        with pytest.raises(DiskSpaceError, match="writing the store"):
            add_all(writer)
        left[0] = 10**6
        with pytest.raises(StoreError, match="open the store again"):
            writer.add(writer.done, rows_of(writer.done))
    monkeypatch.undo()
    write(tmp_path / "parts")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize(
    "name", [".lock", "timings.json", "shard-00000.jsonl.partial", "shard-00000.tokens.npy.partial"]
)
def test_nothing_is_written_through_a_link_in_a_store(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.write_text("dear", encoding="utf-8")
    write(tmp_path / "store", until=1, shard_bytes=10**6)
    (tmp_path / "store" / name).unlink(missing_ok=True)
    (tmp_path / "store" / name).symlink_to(mine)
    for force in (False, True):
        with pytest.raises(StoreError, match=f"{name} (is a link|cannot be written)"):
            StoreWriter(tmp_path / "store", INFO, force=force)
    assert mine.read_text(encoding="utf-8") == "dear"


CUT_SHORT = """
import os, sys
from swift_edge.errors import StoreError
from swift_edge.training import FitOptions, Store, fit_head
store = Store.open(sys.argv[1])
folder, name, when = sys.argv[1:]

def report(line):
    if line.startswith(when):
        os.truncate(os.path.join(folder, name), 4096)

report("before")
try:
    fit_head(store, FitOptions(weight_decay=0.03, max_iterations=20, memory_bytes=2**20), report=report)
except StoreError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="open files cannot be changed there")
@pytest.mark.parametrize(
    ("name", "when"), [("tokens", "before"), ("states", "1600 candidates"), ("statistics", "iteration 10")]
)
def test_a_store_that_is_cut_short_while_it_is_open_is_one_line(
    make_store: Callable[..., Store], name: str, when: str
) -> None:
    folder = make_store(problems=200, n=8, width=64).path
    environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
    command = [sys.executable, "-c", CUT_SHORT, str(folder), f"shard-00000.{name}.npy", when]
    finished = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert finished.returncode == 0, finished.stderr  # by a signal, where the system ends whoever reads on
    assert f"shard-00000.{name}.npy was cut short while it was open: 4096 bytes are left" in finished.stdout


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be written"):
        StoreWriter(tmp_path / "file" / "store", INFO)
