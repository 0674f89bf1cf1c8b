"""Files that commands write: whole, with the mode and the links that were there, and never in place of other things."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import swift_edge
from swift_edge.bundle import open_bundle, staging_folder
from swift_edge.errors import HeadFileError, OutputExistsError, UnknownFolderError
from swift_edge.explain import write_page
from swift_edge.scoring import Head, load_head, save_head

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, links and modes are those of POSIX")
Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
PICK = ("pick", "Once upon a time", "-m", STORIES, "-n", "2", "--max-new-tokens", "4", "--threads", "1")
HEAD = Head(np.ones((2, 8), np.float32), np.zeros(2, np.float32), (0, 1))


def python(program: str, *arguments: object) -> int:
    """Run a program in a process of its own; returns its exit status."""
    environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False).returncode


def reading(pipe: Path) -> tuple[threading.Thread, list[bytes]]:
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    return reader, found


def test_a_page_goes_into_a_pipe_that_stays_one(run: Run, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader, found = reading(pipe)
    assert run(*PICK, "--explain", pipe).status == 0
    reader.join(10)
    assert found[0].startswith(b"<!DOCTYPE html>")
    assert found[0].endswith(b"</html>\n")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_head_goes_into_a_pipe_that_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader, found = reading(pipe)
    save_head(pipe, HEAD)
    reader.join(10)
    (tmp_path / "head.npz").write_bytes(found[0])
    assert load_head(tmp_path / "head.npz").layers == (0, 1)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes devices")
def test_a_device_stays_one(run: Run, tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("not here")
    assert run(*PICK, "--explain", device).status == 0
    assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs a name for stdout")
def test_a_page_follows_the_answer_where_both_go_to_one_file(tmp_path: Path) -> None:
    program = "from swift_edge.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
    with (tmp_path / "both").open("wb") as both:
        command = [sys.executable, "-c", program, *map(str, PICK), "--explain", "/dev/stdout"]
        subprocess.run(command, env=environment, stdout=both, stderr=subprocess.DEVNULL, check=True)
    answer, _, page = (tmp_path / "both").read_bytes().partition(b"\n<!DOCTYPE html>")
    assert answer
    assert page.endswith(b"</html>\n")


def test_sockets_and_folders_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        place = Path(os.path.relpath(tmp_path / "socket"))  # their names have to be short
        if len(str(place)) > 100:
            pytest.skip("the folder has too long a name")
        listening.bind(str(place))
        (tmp_path / "folder").mkdir()
        for name in ("socket", "folder"):
            with pytest.raises(OSError, match="not a file that can be replaced"):
                write_page(tmp_path / name, "page")
            with pytest.raises(HeadFileError, match="not a file that can be replaced"):
                save_head(tmp_path / name, HEAD)
        assert stat.S_ISSOCK(place.stat().st_mode)


def test_through_a_link_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, target in (("link", "there/page"), ("dangling", "there/new"), ("chain", "link")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "there" / "page").write_text("old")
    for name in ("link", "dangling", "chain"):
        write_page(tmp_path / name, name)
        assert (tmp_path / name).is_symlink()
    assert {path.name: path.read_text() for path in (tmp_path / "there").iterdir()} == {
        "page": "chain",
        "new": "dangling",
    }


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_modes_are_kept_and_new_files_have_that_of_any_new_file(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "head.npz"
    save_head(path, HEAD)
    (tmp_path / "any").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    path.chmod(mode)
    save_head(path, replace(HEAD, base_model="other"))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert load_head(path).base_model == "other"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_owners_are_kept_where_that_is_allowed(tmp_path: Path) -> None:
    write_page(tmp_path / "page", "one")
    os.chown(tmp_path / "page", 1234, 4321)
    write_page(tmp_path / "page", "two")
    found = (tmp_path / "page").stat()
    assert (found.st_uid, found.st_gid) == (1234, 4321)


@pytest.mark.parametrize("command", [PICK, ("score", "Once", " a dog", " xq", "-m", STORIES, "--threads", "1")])
def test_a_page_that_is_there_is_replaced_only_when_asked(
    run: Run, tmp_path: Path, command: tuple[object, ...]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    refused = run(*command, "--explain", page)
    assert (refused.status, refused.out) == (1, "")
    (line,) = refused.err.splitlines()
    assert line == f"error: the page {page} exists already; name another file, or replace it with --force"
    assert page.read_text() == "mine"
    assert run(*command, "--explain", page, "--force").status == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("there", ["file", "folder", "null"])
def test_a_head_is_converted_or_fitted_over_nothing_else(run: Run, tmp_path: Path, there: str) -> None:
    out = tmp_path / "head.npz"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        out.mkdir()
    else:
        out.symlink_to(os.devnull)
    for command in (("fit", tmp_path / "absent"), ("recalibrate", "absent.npz", tmp_path / "absent")):
        for force in ((), ("--force",)):
            refused = run(*command, "--out", out, *force)
            taken = there == "folder" or (there == "file" and not force)
            assert refused.status == 1
            assert ("exists already; choose another --out" in refused.err) == taken
    refused = run("convert-head", "absent.pt", "--out", out)
    assert ("exists already; choose another --out" in refused.err) == (there != "null")
    assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]


@pytest.mark.parametrize("name", ["store.json", "swift_edge.json"])
@pytest.mark.parametrize(
    "command", [(*PICK, "--explain"), ("fit", "absent", "--out"), ("convert-head", "a.pt", "--out")]
)
def test_no_page_and_no_head_replaces_a_file_of_a_store_or_a_bundle(
    run: Run, tmp_path: Path, name: str, command: tuple[object, ...]
) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "part").write_text("mine")
    (tmp_path / "link").symlink_to("part")
    for place in (name, "part", "link"):
        refused = run(*command, tmp_path / place, "--force")
        assert (refused.status, refused.out) == (1, "")
        assert f"{tmp_path / place} belongs to the " in refused.err
    assert (tmp_path / name).read_text() == "{}"
    assert (tmp_path / "part").read_text() == "mine"


@pytest.mark.parametrize("name", ["store.json", "swift_edge.json"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_test_is_not_written_into_a_store_or_a_bundle(
    run: Run, tmp_path: Path, name: str, force: tuple[str, ...]
) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "1", "answer": "1"}) + "\n")
    (tmp_path / name).write_text("{}")
    refused = run("eval", "-m", STORIES, "--data", data, "--task", "number", "--out", tmp_path, *force)
    assert (refused.status, refused.out) == (1, "")
    assert "not the folder of a test; name another with --out" in refused.err
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", name}


@pytest.mark.parametrize("name", ["results.json", "results.md", "accuracy.png", "economy.svg"])
def test_results_of_something_else_are_not_replaced(run: Run, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "1", "answer": "1"}) + "\n")
    (tmp_path / name).write_text("mine")
    refused = run("eval", "-m", STORIES, "--data", data, "--task", "number", "--out", tmp_path)
    assert (refused.status, refused.out) == (1, "")
    assert f"holds {name!r} and no test that it belongs to" in refused.err
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", name}


KILLED_BEFORE_THE_NAME = """
import os, sys
from pathlib import Path
from swift_edge.explain import write_page
os.replace = lambda *_: os._exit(9)
write_page(Path(sys.argv[1]), "lost")
"""


def test_what_a_killed_writer_left_is_cleared_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    assert python(KILLED_BEFORE_THE_NAME, page) == 9
    assert len(list(tmp_path.iterdir())) == 2
    assert page.read_text() == "old"
    replacing = os.replace

    def replace_later(source: Any, target: Any) -> None:
        """While one is about to be renamed, another one is written."""
        os.replace = replacing
        write_page(page, "second")
        replacing(source, target)

    os.replace = replace_later
    try:
        write_page(page, "first")
    finally:
        os.replace = replacing
    assert page.read_text() == "first"
    assert list(tmp_path.iterdir()) == [page]


STAGING = """
import os, shutil, sys
from pathlib import Path
from swift_edge.bundle import folder, staging_folder
step = int(sys.argv[3])
replacing = os.replace

def kill(source, target):
    global step
    if ".partial" in str(source) + str(target) and Path(source).is_dir() or ".old" in str(source) + str(target):
        step -= 1
        if step < 0:
            os._exit(9)
    replacing(source, target)

os.replace = kill
shutil.rmtree = lambda *_, **__: os._exit(9)
if step < 9:
    folder.exchange = lambda *_: False  # as where the disk cannot
with staging_folder(sys.argv[1], replace=True) as staging:
    shutil.copytree(sys.argv[2], staging, dirs_exist_ok=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "moved_away"),
    [(0, False), (1, True), (2, False), (9, False)],
    ids=["before", "between", "after", "swapped"],
)
def test_an_export_that_was_killed_leaves_the_old_or_the_new_and_the_next_one_clears_up(
    tmp_path: Path, step: int, moved_away: bool
) -> None:
    out = Path(shutil.copytree(STORIES, tmp_path / "bundle"))
    assert python(STAGING, out, STORIES, step) == 9
    assert len(list(tmp_path.iterdir())) > 1
    if moved_away:
        with pytest.raises(
            UnknownFolderError, match="that an export was about to replace when it was killed"
        ) as caught:
            open_bundle(out)
        (old,) = tmp_path.glob(".bundle-*.old/bundle")
        assert str(old) in str(caught.value)
        open_bundle(old)
    else:
        open_bundle(out)
    with pytest.raises(OutputExistsError, match="already holds a bundle"), staging_folder(out):
        pytest.fail("the body must not run")
    with pytest.raises(KeyboardInterrupt), staging_folder(out, replace=True):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [out]
    open_bundle(out)
