"""Two writers at one place: the second is told who the first is, and neither loses anything."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_store import INFO, add_all, content, finish, rows_of, write

import swift_edge
from swift_edge.bundle import staging_folder
from swift_edge.errors import PlaceInUseError, StoreError
from swift_edge.training import Store, StoreWriter

pytestmark = [
    pytest.mark.usefixtures("quick_disk"),
    pytest.mark.skipif(os.name == "nt", reason="stops and kills processes"),
]
MakeStore = Callable[..., Store]
Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
HOLDER = """
import sys
from small_store import INFO, rows_of
from swift_edge.training import StoreWriter
writer = StoreWriter(sys.argv[1], INFO)
writer.add(0, rows_of(0))
print("ready", flush=True)
sys.stdin.readline()
"""
STOPPED_TEST = f"""
import sys
from swift_edge.evaluation import evaluate
from swift_edge.options import CollectOptions

def report(line):
    if line.startswith("judging"):
        print("ready", flush=True)
        sys.stdin.readline()

options = {{"sizes": (1, 2), "writing": CollectOptions(max_new_tokens=4), "threads": 1}}
evaluate({str(ADDITION)!r}, sys.argv[2], sys.argv[1], task="exact", report=report, **options)
"""


@contextmanager
def started(*arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
    """This interpreter in a process of its own, which is killed at the end, wherever it is."""
    places = [str(Path(swift_edge.__file__).parents[1]), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_for(condition: Callable[[], bool], running: "subprocess.Popen[bytes]") -> None:
    while not condition():
        assert running.poll() is None
        time.sleep(0.005)


@contextmanager
def another_writer(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that has written the first problem of a store and goes on."""
    with started("-c", HOLDER, folder) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        yield running


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"{a}{1000 - a}", "answer": "1000"} for a in range(100, 300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_second_collect_is_told_who_is_at_work_and_the_first_loses_nothing(
    run: Run, sums: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    store = tmp_path / "store"
    options = ("-m", ADDITION, "--task", "number", "-n", "4", "--max-new-tokens", "4", "--threads", "1", "--data", sums)
    with started("-m", "swift_edge", "collect", *options, "--out", store) as first:
        wait_for(lambda: bool(list(store.glob("*.partial"))), first)
        first.send_signal(signal.SIGSTOP)
        refused = run("collect", *options, "--out", store, *force)
        assert (refused.status, refused.out) == (1, "")
        *_, line = refused.err.splitlines()
        assert line.startswith(
            f"error: {store} is being written by process {first.pid} on {socket.gethostname()} since "
        )
        assert Store.open(store).problems == 0  # of shards that are complete
        first.send_signal(signal.SIGCONT)
        first.communicate()
        assert first.returncode == 0
    assert run("collect", *options, "--out", tmp_path / "alone").status == 0
    one, other = (content(folder) for folder in (store, tmp_path / "alone"))
    assert one.pop("timings.json") != other.pop("timings.json")
    assert one == other
    assert not (store / ".lock").exists()


def test_a_writer_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    with another_writer(tmp_path / "store") as other:
        with pytest.raises(PlaceInUseError, match=f"process {other.pid} on "):
            StoreWriter(tmp_path / "store", INFO)
        assert Store.open(tmp_path / "store").candidates == ()
        other.kill()
        other.wait()
        assert (tmp_path / "store" / ".lock").exists()
        finish(StoreWriter(tmp_path / "store", INFO, shard_bytes=3000))
    assert content(tmp_path / "store") == content(tmp_path / "whole")
    assert not (tmp_path / "store" / ".lock").exists()


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    told: list[BaseException] = []
    meeting = threading.Barrier(2)

    def collect() -> None:
        meeting.wait()
        try:
            with StoreWriter(tmp_path / "store", INFO, shard_bytes=3000) as writer:
                add_all(writer)
                meeting.wait(10)
        except PlaceInUseError as error:
            told.append(error)
            meeting.wait(10)

    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in told] == [PlaceInUseError]
    assert f"process {os.getpid()} on" in str(told[0])
    assert content(tmp_path / "store") == content(tmp_path / "whole")


def test_a_writer_that_was_refused_or_closed_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear", encoding="utf-8")
    with pytest.raises(StoreError, match="letter"):
        StoreWriter(tmp_path, INFO)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
    with StoreWriter(tmp_path / "store", INFO) as writer:
        writer.add(0, rows_of(0))
    with pytest.raises(StoreError, match="has ended; open the store again"):
        writer.add(1, rows_of(1))


def test_a_store_that_is_being_started_over_says_so(whole: Path) -> None:
    with StoreWriter(whole, INFO, force=True):
        (whole / "shard-00001.tokens.npy").unlink()
        with pytest.raises(PlaceInUseError, match="is being written by process"):
            Store.open(whole)
    with pytest.raises(StoreError, match=r"shard-00001\.tokens"):
        Store.open(whole)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_complete_store_that_cannot_be_written_is_still_complete(whole: Path) -> None:
    whole.chmod(0o500)
    with StoreWriter(whole, INFO) as writer:
        assert writer.complete
    whole.chmod(0o700)


class TestWithoutLocksOfTheDisk:
    """Some network disks have none: then the process that the file names is looked for."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_arguments: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)

    def test_a_live_process_is_named_and_a_dead_one_holds_nothing(self, tmp_path: Path) -> None:
        with another_writer(tmp_path / "store") as other:
            with pytest.raises(PlaceInUseError, match=f"process {other.pid} on "):
                StoreWriter(tmp_path / "store", INFO)
            other.kill()
            other.wait()
            StoreWriter(tmp_path / "store", INFO).close()
        assert not (tmp_path / "store" / ".lock").exists()

    @pytest.mark.parametrize(
        ("change", "free"),
        [
            ({}, False),
            ({"host": "elsewhere"}, False),
            ({"started": "1"}, True),
            ({"pid": "12"}, True),
            ({"pid": -1}, True),
        ],
    )
    def test_what_counts_is_the_very_process_and_other_machines_are_trusted(
        self, tmp_path: Path, change: dict[str, Any], free: bool
    ) -> None:
        with StoreWriter(tmp_path, INFO):
            document = json.loads((tmp_path / ".lock").read_bytes())
        (tmp_path / ".lock").write_text(json.dumps(document | change), encoding="utf-8")
        if free:
            StoreWriter(tmp_path, INFO).close()
        else:
            with pytest.raises(PlaceInUseError, match=f"on {change.get('host', socket.gethostname())} since"):
                StoreWriter(tmp_path, INFO)


def test_two_exports_to_one_place_exclude_each_other(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    first = staging_folder(out)
    first.__enter__()
    told = f"{out} is being written by process {os.getpid()}"
    for replace in (False, True):
        with pytest.raises(PlaceInUseError, match=told), staging_folder(out, replace=replace):
            pytest.fail("the body must not run")
    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path / "another"):
        raise KeyboardInterrupt
    assert not first.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_fits_to_one_place_exclude_each_other(run: Run, make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store(problems=40).path, tmp_path / "head.npz"
    options = (store, "--out", out, "--weight-decay", "0.03", "--max-iterations", "12")
    with started("-m", "swift_edge", "fit", *options) as first:
        lock = tmp_path / ".head.npz.lock"
        wait_for(lambda: lock.exists() and lock.stat().st_size > 0, first)  # it says whose it is
        first.send_signal(signal.SIGSTOP)
        for force in ((), ("--force",)):
            refused = run("fit", *options, *force)
            assert (refused.status, refused.out) == (1, "")
            assert f"head.npz is being written by process {first.pid} on" in refused.err
        first.send_signal(signal.SIGCONT)
        first.communicate()
        assert first.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]


@pytest.mark.slow
def test_two_tests_in_one_folder_exclude_each_other_to_the_end(run: Run, sums: Path, tmp_path: Path) -> None:
    """The first is stopped where its candidates are complete, so that nobody holds their store any more."""
    out, options = tmp_path / "results", ("-m", ADDITION, "--data", sums, "--task", "exact", "-n", "1,2")
    writing = ("--max-new-tokens", "4", "--threads", "1")
    with started("-c", STOPPED_TEST, out, sums) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        assert not (out / "candidates" / ".lock").exists()
        for force in ((), ("--force",)):
            refused = run("eval", *options, *writing, "--out", out, *force)
            assert (refused.status, refused.out) == (1, ""), refused.err
            assert f"results is being written by process {first.pid} on" in refused.err
        assert Store.open(out / "candidates").complete
        first.communicate(b"\n")
        assert first.returncode == 0
    assert run("eval", *options, *writing, "--out", out).status == 0
    assert not (out / ".lock").exists()
