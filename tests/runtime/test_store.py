"""The store on disk: what goes in comes out, and interruptions leave no trace."""

import itertools
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import INFO, SMALL, change_lines, content, finish, rows_of, write

from swift_edge.errors import StoreError
from swift_edge.training import Store, StoreWriter, read_info

pytestmark = pytest.mark.usefixtures("quick_disk")


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
    replacing, left = os.replace, renamed

    def kill(source: Any, target: Any) -> None:
        nonlocal left
        if "shard" in str(target):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        replacing(source, target)

    writer = StoreWriter(tmp_path / "parts", INFO, shard_bytes=SMALL)
    monkeypatch.setattr(os, "replace", kill)
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


def test_many_candidates_share_their_token_ids(whole: Path) -> None:
    change_lines(whole, lambda rows: [row.update(token_ids=[1000] * row["n_tokens"]) for row in rows])
    candidates = Store.open(whole).shards[1].candidates
    assert len(candidates) > 1
    assert len({id(token_id) for candidate in candidates for token_id in candidate.token_ids}) == 1


def test_a_copy_of_a_store_is_the_store(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    assert len(Store.open(tmp_path / "copy").candidates) == len(Store.open(whole).candidates)
