"""The store on disk: what goes in comes out, interruptions leave no trace, and damage is named."""

import builtins
import errno
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_edge.errors import DiskSpaceError, StoreError
from swift_edge.training import shards
from swift_edge.training.store import CandidateRows, Store, StoredCandidate, StoreInfo, StoreWriter
from swift_edge.training.store_format import read_info

INFO = StoreInfo(
    base_model="tiny",
    fingerprint="ab",
    precision="fp32",
    bundle="models/tiny",
    feature="hidden",
    layers=(1, 3),
    width=4,
    eos_ids=(2,),
    problems=7,
    n=3,
    seed=0,
    sampling={"temperature": 1.0, "stop": []},
    max_new_tokens=8,
    raw=False,
    task="number",
    tokens_per_candidate=None,
    data_sha256="cd",
    version="0",
)
SMALL = 3000  # bytes of a shard: about two problems


def rows_of(problem: int, info: StoreInfo = INFO) -> list[CandidateRows]:
    """Candidates that depend on the problem alone; the last token of every other one was not fed."""
    generator = np.random.default_rng(problem)
    found = []
    for index in range(info.n or 2 + problem % 2):
        tokens = int(generator.integers(1, 9))
        fed = tokens - (index % 2 and tokens > 1)
        candidate = StoredCandidate(
            problem=problem,
            index=index,
            correct=bool(generator.integers(2)),
            answer=None if index else "caf\u00e9\u2028",
            text=f"text {problem}\n{index}\r\u2028",
            token_ids=tuple(generator.integers(0, 300, tokens).tolist()),
            tokens=fed,
            n_tokens=tokens,
            finish_reason="stop",
            unscored_tokens=tokens - fed,
            logprob=float(generator.normal()),
            mean_logprob=float(generator.normal()),
            self_certainty=math.inf if index == 1 else 0.5,
            entropy=0.1,
            scores={"plain": 0.25},
        )
        states = generator.normal(size=(fed, info.slices, info.width)).astype(np.float16)
        statistics = generator.normal(size=(fed, 3)).astype(np.float32)
        found.append(CandidateRows(candidate, states, statistics, np.arange(fed)))
    return found


def write(path: Path, info: StoreInfo = INFO, until: int | None = None, shard_bytes: int = SMALL) -> None:
    with StoreWriter(path, info, shard_bytes=shard_bytes) as writer:
        for problem in range(writer.done, info.problems if until is None else until):
            writer.add(problem, rows_of(problem, info))


def add_all(writer: StoreWriter) -> None:
    for problem in range(writer.done, writer.info.problems):
        writer.add(problem, rows_of(problem, writer.info))


def finish(writer: StoreWriter) -> None:
    add_all(writer)
    writer.close()


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def quick_disk() -> Iterator[None]:
    """What these tests kill is a process, not a machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.os, "fsync", lambda _: None)
        yield


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    write(tmp_path / "whole")
    return tmp_path / "whole"


def test_what_went_in_comes_out(whole: Path) -> None:
    store = Store.open(whole)
    assert store.info == INFO
    assert store.complete
    assert 1 < len(store.shards) < INFO.problems
    expected = [rows for problem in range(INFO.problems) for rows in rows_of(problem)]
    assert [each.token_ids for each in store.candidates] == [rows.candidate.token_ids for rows in expected]
    found = [(shard, place) for shard in store.shards for place in range(len(shard.candidates))]
    for (shard, place), rows in zip(found, expected, strict=True):
        candidate = shard.candidates[place]
        part = slice(shard.starts[place], shard.starts[place + 1])
        np.testing.assert_array_equal(shard.states[part], rows.states)
        np.testing.assert_array_equal(shard.statistics[part], rows.statistics)
        np.testing.assert_array_equal(shard.positions[part], rows.positions)
        assert tuple(shard.token_ids[part]) == candidate.token_ids[: candidate.tokens]
        # JSON has no infinity.
        assert math.isnan(candidate.self_certainty) == math.isinf(rows.candidate.self_certainty)
        assert replace(candidate, self_certainty=0) == replace(rows.candidate, self_certainty=0)
    assert not store.shards[0].states.flags.writeable
    assert sum(len(shard.starts) - 1 for shard in store.shards) == len(store.candidates)


def test_a_shard_ends_with_the_problem_that_fills_it(whole: Path) -> None:
    sizes = [sum(len(data) for name, data in content(whole).items() if f"-{k:05}." in name) for k in range(20)]
    shards_there = [size for size in sizes if size]
    assert len(shards_there) > 1
    assert all(size > SMALL for size in shards_there[:-1])
    numbers = [[each.problem for each in shard.candidates] for shard in Store.open(whole).shards]
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(numbers))


def test_without_features_there_are_no_states(tmp_path: Path) -> None:
    info = replace(INFO, feature="none", layers=(), width=0)
    write(tmp_path, info)
    assert not list(tmp_path.glob("*states*"))
    store = Store.open(tmp_path)
    assert store.shards[0].states.shape == (len(store.shards[0].statistics), 0, 0)


@settings(max_examples=15)
@given(stops=st.lists(st.integers(0, 7), max_size=4), number_known=st.booleans())
def test_interruptions_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], number_known: bool
) -> None:
    folder = tmp_path_factory.mktemp("store")
    info = INFO if number_known else replace(INFO, n=None)
    write(folder / "whole", info)
    for stop in stops:
        write(folder / "parts", info, until=stop)
    write(folder / "parts", info)
    assert content(folder / "parts") == content(folder / "whole")


@settings(max_examples=15)
@given(data=st.data())
def test_a_run_that_is_killed_anywhere_goes_on_and_leaves_no_trace(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    info = replace(INFO, n=data.draw(st.sampled_from([3, None])))
    write(folder / "whole", info, shard_bytes=10**6)
    write(folder / "parts", info, until=data.draw(st.integers(1, 6)), shard_bytes=10**6)
    # Killed while the files of a shard grow: each has what was flushed. The lines are written after the arrays.
    partial = sorted((folder / "parts").glob("*.partial"))
    assert len(partial) == 5
    for file in partial:
        if file.name.endswith(".jsonl.partial") or data.draw(st.booleans()):
            size = file.stat().st_size
            with open(file, "r+b") as stream:
                stream.truncate(data.draw(st.integers(0, size)))
    write(folder / "parts", info, shard_bytes=10**6)
    assert content(folder / "parts") == content(folder / "whole")


@pytest.mark.parametrize("renamed", range(20))
def test_a_run_that_is_killed_while_a_shard_gets_its_names_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    write(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("shard*"))) == 20
    replacing, left = shards.os.replace, renamed

    def kill(source: Any, target: Any) -> None:
        nonlocal left
        if "shard" in str(target):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        replacing(source, target)

    writer = StoreWriter(tmp_path / "parts", INFO, shard_bytes=SMALL)
    monkeypatch.setattr(shards.os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        finish(writer)
    writer.close()
    monkeypatch.undo()
    killed = StoreWriter(tmp_path / "parts", INFO, shard_bytes=SMALL)
    assert killed.done >= writer.done > 0  # nothing is written a second time
    finish(killed)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_what_was_added_is_on_the_disk_at_once(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", INFO) as writer:
        for problem in range(3):
            writer.add(problem, rows_of(problem))
            shutil.copytree(tmp_path / "store", tmp_path / str(problem))
            with StoreWriter(tmp_path / str(problem), INFO) as killed:
                assert killed.done == problem + 1


def test_a_problem_whose_number_of_candidates_is_known_is_not_lost(tmp_path: Path) -> None:
    write(tmp_path, until=5, shard_bytes=10**6)
    with StoreWriter(tmp_path, INFO) as writer:
        assert (writer.done, writer.candidates) == (5, 15)
        assert writer.tokens == sum(rows.candidate.n_tokens for problem in range(5) for rows in rows_of(problem))


def test_an_incomplete_store_opens_with_what_is_complete(tmp_path: Path) -> None:
    write(tmp_path, until=4)
    store = Store.open(tmp_path)
    assert not store.complete
    assert store.problems == store.candidates[-1].problem + 1 > 0


def test_writing_a_complete_store_again_changes_nothing(whole: Path) -> None:
    before = content(whole)
    with StoreWriter(whole, INFO) as writer:
        assert writer.complete
        with pytest.raises(StoreError, match="expected problem 7 of 7"):
            writer.add(7, rows_of(7))
    assert content(whole) == before


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("seed", 1, "seed 0, now seed is 1;"),
        ("layers", (1,), r"layers \[1, 3\], now layers is \[1\];"),
        ("precision", "int4", 'precision "fp32", now precision is "int4";'),
        ("tokens_per_candidate", 4, "tokens_per_candidate null, now tokens_per_candidate is 4;"),
        ("sampling", {"temperature": 0.5, "stop": []}, "sampling "),
        ("bundle", "elsewhere", "bundle "),
    ],
)
def test_other_settings_are_refused_by_name(whole: Path, name: str, value: Any, shown: str) -> None:
    before = content(whole)
    with pytest.raises(StoreError, match=shown + ".*--out, or start over with --force"):
        StoreWriter(whole, replace(INFO, **{name: value}))
    assert content(whole) == before


def test_a_bundle_that_was_moved_is_the_same_bundle(tmp_path: Path) -> None:
    info = replace(INFO, bundle_sha256="ef")
    write(tmp_path, info, until=2)
    write(tmp_path, replace(info, bundle="elsewhere", version="1"))
    assert Store.open(tmp_path).complete


def test_force_starts_over_but_not_over_other_files(whole: Path, tmp_path: Path) -> None:
    (whole / "notes.txt").write_text("mine", encoding="utf-8")
    other = replace(INFO, seed=1)
    before = content(whole)
    with StoreWriter(whole, other, force=True) as writer:
        assert writer.done == 0
        assert content(whole) == before
        writer.add(0, rows_of(0))
    files = {name.removesuffix(".partial") for name in content(whole)}
    assert files == {"notes.txt", "store.json"} | {name for name in before if "00000" in name}
    assert read_info(whole) == other
    (whole / "store.json").unlink()
    for force in (False, True):
        with pytest.raises(StoreError, match=r"holds 'notes.txt' and no store.json.*--out"):
            StoreWriter(whole, other, force=force)


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


def lines(path: Path, change: Any) -> None:
    file = path / "shard-00001.jsonl"
    documents = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    change(documents)
    file.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[1].pop("correct"), "line 2 .*correct is missing"),
        (lambda rows: rows[0].update(correct=1), "line 1 .*correct is 1, expected true or false"),
        (lambda rows: rows[0].update(tokens=True), "tokens is True, expected an integer"),
        (lambda rows: rows[0].update(token_ids=[1, "2"]), "expected integers"),
        (lambda rows: rows[0].update(scores={"head": "good"}), "scores"),
        (lambda rows: rows[0].update(text=5), "text is 5, expected a string"),
        (lambda rows: rows.__setitem__(0, [1]), "not an object"),
        (lambda rows: rows.pop(0), "line 1 holds candidate 1"),
        (lambda rows: rows.pop(1), "line 2 holds candidate 2.*expected candidate 1"),
        (lambda rows: rows.clear(), "no lines"),
        (lambda rows: rows[0].update(tokens=rows[0]["tokens"] + 1), "states.npy"),
    ],
)
def test_damaged_lines_are_named(whole: Path, change: Any, reason: str) -> None:
    lines(whole, change)
    with pytest.raises(StoreError, match=f"shard-00001.*{reason}"):
        Store.open(whole)


def test_no_store_and_damaged_settings_are_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(StoreError, match=r"holds no store.json.*swift-edge collect"):
            Store.open(path)
    text = (whole / "store.json").read_text(encoding="utf-8")
    for spoiled, reason in (
        (text[:-9], "not JSON"),
        ("[]", "not an object"),
        (text.replace('"seed": 0', '"seed": "0"'), "seed is '0', expected an integer"),
        (text.replace('"hidden"', '"states"'), "feature"),
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


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be written"):
        StoreWriter(tmp_path / "file" / "store", INFO)


def test_many_candidates_share_their_token_ids(whole: Path) -> None:
    lines(whole, lambda rows: [row.update(token_ids=[1000] * row["n_tokens"]) for row in rows])
    candidates = Store.open(whole).shards[1].candidates
    assert len(candidates) > 1
    assert len({id(token_id) for candidate in candidates for token_id in candidate.token_ids}) == 1


def test_a_copy_of_a_store_is_the_store(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    assert len(Store.open(tmp_path / "copy").candidates) == len(Store.open(whole).candidates)
