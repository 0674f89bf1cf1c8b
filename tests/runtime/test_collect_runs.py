"""Runs of collect that are interrupted, called differently, or short of something: nothing is lost, all is said."""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swift_edge.bundle import open_bundle, read_manifest, write_bundle
from swift_edge.engine import OpenedModel
from swift_edge.errors import DataError, DiskSpaceError, InvalidOptionError, MemoryLimitError, StoreError
from swift_edge.training import CollectProgress, Problem, Store, StoredCandidate, collect

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
SUMS: dict[str, Any] = {"task": "number", "n": 4, "max_new_tokens": 4}
OPENINGS = ("Once upon a time", "Lily saw a dog", "The sun", "Tom was sad because his mom said no", "One day")
TALES: dict[str, Any] = {"grader": lambda _, text: "the" in text, "n": 3, "max_new_tokens": 24, "temperature": 1.2}


def content(path: Path) -> dict[str, bytes]:
    """Everything but the timings."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "timings.json"}


class Stop(Exception):  # noqa: N818
    """Stands for a key that was pressed."""


def stop_after(steps: int) -> Callable[[CollectProgress], None]:
    left = [steps]

    def progress(_: CollectProgress) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stop

    return progress


def stop_at(problems: int) -> Callable[[CollectProgress], None]:
    """Interrupt a run as soon as so many problems are stored, and others are under way."""

    def progress(state: CollectProgress) -> None:
        if state.problems >= problems:
            raise Stop

    return progress


@pytest.mark.skipif(os.name == "nt", reason="temporary files of the dead are cleared where they can be unlocked")
def test_what_a_dead_writer_left_in_a_complete_store_goes(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    """Killed while it wrote the times of the last run, which the next one does not write again."""
    store = tmp_path / "store"
    collect(telling, tales, store, **TALES)
    before = content(store)
    host = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())[:40]
    for name in ("timings.json", "store.json"):
        (store / f".{name}.{host}.0123abcd.tmp").write_bytes(b"{")
    (store / ".timings.json.another-machine.0123abcd.tmp").write_bytes(b"{")
    collect(telling, tales, store, **TALES)
    assert content(store) == before | {".timings.json.another-machine.0123abcd.tmp": b"{"}


@pytest.mark.parametrize("problems", [0, 1, 4])
def test_an_interrupted_run_goes_on_and_leaves_no_trace(
    telling: OpenedModel, tales: Path, tmp_path: Path, problems: int
) -> None:
    options: dict[str, Any] = TALES | {"shard_bytes": 60_000}
    collect(telling, tales, tmp_path / "whole", **options, rows=4)
    with pytest.raises(Stop):
        collect(telling, tales, tmp_path / "parts", **options, rows=4, progress=stop_at(problems))
    with contextlib.suppress(StoreError):  # nothing was complete yet
        assert not Store.open(tmp_path / "parts").complete
    lines: list[str] = []
    found = collect(telling, tales, tmp_path / "parts", **options, rows=3, report=lines.append)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert any("going on" in line for line in lines) == (found.new_tokens < found.tokens) == (problems > 0)
    timings = json.loads((tmp_path / "parts" / "timings.json").read_text(encoding="utf-8"))
    assert timings["runs"] == 1 + (problems > 0)
    assert timings["tokens"] >= found.tokens
    assert timings["total_s"] >= found.total_s > found.decode_s > 0


def test_a_complete_store_is_left_alone(adding: OpenedModel, sums: Path, tmp_path: Path) -> None:
    collect(adding, sums, tmp_path, **SUMS)
    before = content(tmp_path), (tmp_path / "timings.json").read_bytes()
    lines: list[str] = []
    found = collect(adding, sums, tmp_path, **SUMS, report=lines.append, progress=stop_after(1))
    assert "complete" in lines[0]
    assert (found.new_tokens, found.tokens, found.candidates) == (0, 320, 80)
    assert before == (content(tmp_path), (tmp_path / "timings.json").read_bytes())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"n": 2}, "n"),
        ({"layers": (1,)}, "layers"),
        ({"temperature": 0.5}, "sampling"),
        ({"stop": "7"}, "sampling"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"task": "exact"}, "task"),
        ({"limit": 3}, "problems"),
        ({"tokens_per_candidate": 2}, "tokens_per_candidate"),
        ({"store_features": False}, "feature"),
    ],
)
def test_other_options_are_refused_unless_forced(
    adding: OpenedModel, sums: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    collect(adding, sums, tmp_path, **SUMS)
    with pytest.raises(StoreError, match=f"collected with {field} .*--force"):
        collect(adding, sums, tmp_path, **SUMS | change)
    assert collect(adding, sums, tmp_path, **SUMS | change, force=True).new_tokens > 0
    assert json.loads((tmp_path / "timings.json").read_text(encoding="utf-8"))["runs"] == 1


def test_another_model_or_other_data_is_refused(adding: OpenedModel, sums: Path, tmp_path: Path) -> None:
    collect(adding, sums, tmp_path / "store", **SUMS)
    other = tmp_path / "other.jsonl"
    other.write_bytes(sums.read_bytes() + b"\n")
    with pytest.raises(StoreError, match="collected with data_sha256"):
        collect(adding, other, tmp_path / "store", **SUMS)
    with pytest.raises(StoreError, match="collected with base_model"):
        collect(ROOT / "tests" / "data" / "addition-gpt2-h4_l4", sums, tmp_path / "store", **SUMS, threads=1)
    # The same model elsewhere is the same model.
    shutil.copytree(ADDITION, tmp_path / "moved")
    assert collect(tmp_path / "moved", sums, tmp_path / "store", **SUMS, threads=1).new_tokens == 0


def test_a_grader_that_fails_keeps_what_is_stored(adding: OpenedModel, sums: Path, tmp_path: Path) -> None:
    def fragile(problem: Problem, text: str) -> bool:
        if problem.number == 7:
            raise ValueError("no such word")
        return text.startswith("1")

    options: dict[str, Any] = {"n": 4, "max_new_tokens": 4}
    with pytest.raises(DataError, match=r"problem 7 \(.*line 8\): ValueError: no such word"):
        collect(adding, sums, tmp_path, grader=fragile, **options)
    lines: list[str] = []
    found = collect(adding, sums, tmp_path, grader=lambda _, text: text.startswith("1"), **options, report=lines.append)
    assert any("after 7 of 20 problems" in line for line in lines)
    assert found.candidates == 80
    assert Store.open(tmp_path).info.task is None


@pytest.mark.parametrize(("label", "which"), [(True, "right"), (False, "wrong")])
def test_one_class_alone_is_a_note(adding: OpenedModel, sums: Path, tmp_path: Path, label: bool, which: str) -> None:
    lines: list[str] = []
    found = collect(
        adding, sums, tmp_path, grader=lambda *_: label, n=2, max_new_tokens=4, limit=3, report=lines.append
    )
    (note,) = found.notes
    assert f"all 6 candidates are {which}" in note
    assert f"note: {note}" in lines
    again = collect(adding, sums, tmp_path, grader=lambda *_: label, n=2, max_new_tokens=4, limit=3)
    assert again.notes == found.notes


def test_problems_that_are_all_right_or_all_wrong_are_a_note(adding: OpenedModel, sums: Path, tmp_path: Path) -> None:
    found = collect(adding, sums, tmp_path, grader=lambda problem, _: problem.number == 1, n=2, limit=3)
    (note,) = found.notes
    assert "no problem has both" in note


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"rows": 0}, InvalidOptionError, "rows is 0"),
        ({"n": 0}, InvalidOptionError, "n is 0"),
        ({"temperature": 0}, InvalidOptionError, "temperature 0"),
        ({"limit": 0}, InvalidOptionError, "limit is 0"),
        ({"tokens_per_candidate": 0}, InvalidOptionError, "tokens_per_candidate is 0"),
        ({"layers": ()}, InvalidOptionError, "layers are none"),
        ({"layers": (0, 2)}, InvalidOptionError, "layers are 0, 2, but the bundle gives out 0, 1"),
        ({"layers": (0,), "feature": "logits"}, InvalidOptionError, "no hidden states are kept"),
        ({"layers": (0,), "store_features": False}, InvalidOptionError, "no hidden states are kept"),
        ({"feature": "states"}, InvalidOptionError, "expected hidden or logits"),
        ({"task": None}, InvalidOptionError, "neither a task nor a grader"),
        ({"task": "letter"}, DataError, "line 1 has the answer .*'letter'"),
    ],
)
def test_options_are_checked_before_anything_is_written(
    adding: OpenedModel, sums: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        collect(adding, sums, tmp_path / "store", **SUMS | change)
    assert not list(tmp_path.rglob("*.*"))
    assert collect(adding, sums, tmp_path / "store", **SUMS).candidates == 80
    with pytest.raises(error, match=reason):
        collect(adding, sums, tmp_path / "store", **SUMS | change, force=True)
    assert Store.open(tmp_path / "store").complete


@pytest.mark.parametrize("prompt", ["", "12345678901", "\ud800"])
def test_a_prompt_that_cannot_be_answered_is_named_before_anything_is_written(
    adding: OpenedModel, tmp_path: Path, prompt: str
) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": "123456", "answer": 1}, {"prompt": prompt, "answer": 1}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"data.jsonl line 2: "):
        collect(adding, data, tmp_path / "store", **SUMS)
    assert not list(tmp_path.glob("store/*"))


@pytest.mark.parametrize(
    "content",
    ["[1]", "{}", '{"total_s": 1e999}', '{"total_s": "1"}', "[" * 10**5, '{"runs": ' + "1" * 5000 + "}", "\0"],
)
def test_times_that_are_damaged_do_not_cost_what_was_collected(
    adding: OpenedModel, sums: Path, tmp_path: Path, content: str
) -> None:
    with pytest.raises(Stop):
        collect(adding, sums, tmp_path / "store", **SUMS, progress=stop_at(1))
    (tmp_path / "store" / "timings.json").write_text(content, encoding="utf-8")
    assert collect(adding, sums, tmp_path / "store", **SUMS).problems == Store.open(tmp_path / "store").problems
    assert json.loads((tmp_path / "store" / "timings.json").read_text(encoding="utf-8"))["runs"] == 1


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="how much memory there is, Linux alone says")
def test_memory_is_estimated_before_it_is_taken(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryLimitError, match=r"16 rows of .*features .*--rows"):
        collect(telling, tales, tmp_path, **TALES, held_bytes=2**60)


class Disk:
    """A disk with so many bytes free."""

    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, _: Path) -> "Disk":
        return self


def test_disk_that_may_not_do_is_a_warning_and_disk_that_does_not_do_is_an_error(
    adding: OpenedModel, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(adding, sums, tmp_path / "whole", **SUMS)
    lines: list[str] = []
    # Most candidates could be longer than they are.
    monkeypatch.setattr(shutil, "disk_usage", Disk(whole.nbytes))
    options = SUMS | {"max_new_tokens": 9}
    collect(adding, sums, tmp_path / "tight", **options, report=lines.append)
    assert any("of disk" in line for line in lines)
    assert any(line.startswith("warning: only") for line in lines)
    monkeypatch.setattr(shutil, "disk_usage", Disk(whole.nbytes // 2))
    with pytest.raises(DiskSpaceError, match=r"12 more problems at .*--layers or --tokens-per-candidate"):
        collect(adding, sums, tmp_path / "short", **options)
    monkeypatch.undo()
    lines.clear()
    collect(adding, sums, tmp_path / "short", **options, report=lines.append)
    assert any("after 8 of 20" in line for line in lines)
    assert content(tmp_path / "short") == content(tmp_path / "tight")


def test_a_disk_that_fills_up_keeps_what_is_complete(
    adding: OpenedModel, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(adding, sums, tmp_path / "whole", **SUMS)
    written, left = StoredCandidate.to_line, [5 * 4 + 2]

    def full(candidate: StoredCandidate) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(candidate)

    monkeypatch.setattr(StoredCandidate, "to_line", full)  # the arrays of the problem are written by then
    with pytest.raises(DiskSpaceError, match="writing the store"):
        collect(adding, sums, tmp_path / "parts", **SUMS)
    monkeypatch.undo()
    lines: list[str] = []
    collect(adding, sums, tmp_path / "parts", **SUMS, report=lines.append)
    assert any("after 5 of 20 problems" in line for line in lines)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_a_head_that_lies_in_the_bundle_and_does_not_fit_is_no_obstacle(sums: Path, tmp_path: Path) -> None:
    shutil.copytree(ADDITION, tmp_path / "bundle")
    (tmp_path / "bundle" / "head.npz").write_bytes(b"an old one")
    write_bundle(tmp_path / "bundle", read_manifest(tmp_path / "bundle"))
    assert open_bundle(tmp_path / "bundle").head_path is not None
    assert collect(tmp_path / "bundle", sums, tmp_path / "store", **SUMS, threads=1).candidates == 80
    (tmp_path / "bundle" / "head.npz").write_bytes(b"another one")
    write_bundle(tmp_path / "bundle", read_manifest(tmp_path / "bundle"))
    assert collect(tmp_path / "bundle", sums, tmp_path / "store", **SUMS, threads=1).new_tokens == 0
