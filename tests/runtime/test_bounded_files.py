"""Files that others made, at every door: endless, huge or odd ones end in one line that names the file, before memory.

What each door reads is in the tests of its subject; here is what all of them have in common.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_store import write

from swift_edge.bundle import open_bundle
from swift_edge.errors import SwiftEdgeError
from swift_edge.evaluation import read_external
from swift_edge.scoring import load_head
from swift_edge.system import documents
from swift_edge.training import Store, read_problems, read_responses

SAME_MODEL = Path(__file__).parents[2] / "tests" / "data" / "same-model"


def genai_config(folder: Path) -> tuple[Path, Callable[[], object]]:
    shutil.copytree(SAME_MODEL / "onnxruntime-genai", folder)
    return folder / "genai_config.json", lambda: open_bundle(folder)


def optimum_config(folder: Path) -> tuple[Path, Callable[[], object]]:
    shutil.copytree(SAME_MODEL / "optimum", folder)
    return folder / "config.json", lambda: open_bundle(folder)


def generation_config(folder: Path) -> tuple[Path, Callable[[], object]]:
    shutil.copytree(SAME_MODEL / "optimum", folder)
    return folder / "generation_config.json", lambda: open_bundle(folder)


def tokenizer_config(folder: Path) -> tuple[Path, Callable[[], object]]:
    shutil.copytree(SAME_MODEL / "optimum", folder)
    return folder / "tokenizer_config.json", lambda: open_bundle(folder)


def manifest(folder: Path) -> tuple[Path, Callable[[], object]]:
    shutil.copytree(SAME_MODEL / "swift-edge", folder)
    return folder / "swift_edge.json", lambda: open_bundle(folder)


def store_settings(folder: Path) -> tuple[Path, Callable[[], object]]:
    write(folder)
    return folder / "store.json", lambda: Store.open(folder)


def store_lines(folder: Path) -> tuple[Path, Callable[[], object]]:
    write(folder)
    return folder / "shard-00001.jsonl", lambda: Store.open(folder)


def problems(folder: Path) -> tuple[Path, Callable[[], object]]:
    folder.mkdir()
    path = folder / "problems.jsonl"
    path.write_text('{"prompt": "1+1", "answer": "2"}\n', encoding="utf-8")
    return path, lambda: read_problems(path)


def responses(folder: Path) -> tuple[Path, Callable[[], object]]:
    folder.mkdir()
    path = folder / "responses.jsonl"
    path.write_text('{"prompt": "1+1", "completions": ["2"], "correctness": [true]}\n', encoding="utf-8")
    return path, lambda: read_responses(path)


def external_scores(folder: Path) -> tuple[Path, Callable[[], object]]:
    folder.mkdir()
    path = folder / "scores.jsonl"
    path.write_text('{"problem": 0, "index": 0, "score": 0.5}\n', encoding="utf-8")
    return path, lambda: read_external(path, 1, 1)


WRITTEN_HERE = (manifest, store_settings, store_lines)
WRITTEN_ELSEWHERE = (genai_config, optimum_config, generation_config, tokenizer_config)
ROWS = (problems, responses, external_scores)
DOORS = (*WRITTEN_HERE, *WRITTEN_ELSEWHERE, *ROWS)


def refused(call: Callable[[], object], path: Path) -> str:
    with pytest.raises(SwiftEdgeError) as caught:
        call()
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 700
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("door", DOORS)
def test_what_was_written_reads(tmp_path: Path, door: Any) -> None:
    path, call = door(tmp_path / "there")
    assert path.is_file()
    call()


@pytest.mark.parametrize("door", DOORS)
def test_a_sparse_file_of_20_gb_is_refused_by_its_size(tmp_path: Path, door: Any) -> None:
    path, call = door(tmp_path / "there")
    os.truncate(path, 20 * 10**9)
    assert "18.63 GiB; expected at most" in refused(call, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="without pipes and devices in the file system")
@pytest.mark.parametrize("door", [store_settings, store_lines, *ROWS])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, door: Any, kind: str) -> None:
    path, call = door(tmp_path / "there")
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)  # whoever opened it would wait for a writer
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert f"is a {kind}; expected a file" in refused(call, path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": ' + b"1" * 5000 + b"}", "a number of more than 4300 digits"),
        (b'{"a": "\\ud800"}', "a has half a character (U+D800)"),
        (b'{"a": [["x", "\\udfff"]]}', "a has half a character (U+DFFF)"),
        (b'{"\\ud800": 1}', "a name has half a character (U+D800)"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 0xff at 7)"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": 1}\x00', "not JSON"),
        (b"\x00" * 100, "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"[1]", "[1]"),
        (b'"text"', "text"),
        (b"1", "1"),
        (b"null", "expected"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_json_that_is_none_or_cannot_be_held_is_one_line(tmp_path: Path, door: Any, content: bytes, said: str) -> None:
    path, call = door(tmp_path / "there")
    path.write_bytes(content)
    message = refused(call, path)
    # Other programs' configurations are told by the kind of what they hold.
    assert said in message or (door in WRITTEN_ELSEWHERE and "expected an object" in message)


@pytest.mark.parametrize("door", DOORS)
def test_a_byte_order_mark_and_the_line_ends_of_windows_are_taken(tmp_path: Path, door: Any) -> None:
    path, call = door(tmp_path / "there")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    call()


@pytest.mark.parametrize("door", WRITTEN_HERE)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("NaN", "NaN is no number of JSON"),
        ("Infinity", "Infinity is no number of JSON"),
        ("-Infinity", "-Infinity is no number of JSON"),
        ("1e999", "1e999 is beyond the numbers of a float"),
        ('{"b": 1, "b": 2}', 'the name \\"b\\" twice'),
    ],
)
def test_what_swift_edge_writes_is_read_as_json_is_defined(tmp_path: Path, door: Any, value: str, said: str) -> None:
    path, call = door(tmp_path / "there")
    path.write_text(path.read_text(encoding="utf-8").replace("{", f'{{"a": {value}, ', 1), encoding="utf-8")
    assert said.replace("\\", "") in refused(call, path)


@pytest.mark.parametrize("door", [*WRITTEN_ELSEWHERE, *ROWS])
@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '{"b": 1, "b": 2}', "1" * 400])
def test_strange_values_of_what_is_not_used_do_no_harm(tmp_path: Path, door: Any, value: str) -> None:
    path, call = door(tmp_path / "there")
    path.write_text(path.read_text(encoding="utf-8").replace("{", f'{{"unused": {value}, ', 1), encoding="utf-8")
    call()


def test_a_line_that_does_not_end_is_refused_by_its_length(tmp_path: Path) -> None:
    path, call = problems(tmp_path / "there")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.truncate(len(whole) + 65 * 2**20)
    assert "problems.jsonl line 2 is longer than 64.0 MiB" in refused(call, path)


def test_a_tokenizer_of_gigabytes_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    path, _ = optimum_config(tmp_path / "there")
    tokenizer = path.with_name("tokenizer.json")
    os.truncate(tokenizer, 20 * 10**9)
    assert "18.63 GiB; expected at most 256.0 MiB" in refused(lambda: open_bundle(path.parent), tokenizer)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_that_is_no_text_is_one_line(tmp_path: Path, name: str) -> None:
    path = optimum_config(tmp_path / "there")[0].with_name(name)
    if name.endswith("jinja"):
        contents = [b"{{ \xff }}", b"x" * (2**20 + 1)]
    else:
        templates: list[object] = [[["a"]], ["a"], {"name": "default"}, 5, True, "x" * (2**20 + 1)]
        templates += [[{"name": "default", "template": 5}], [{"name": ["default"], "template": "a"}, 1]]
        contents = [json.dumps({"chat_template": each}).encode() for each in templates]
    for content in contents:
        path.write_bytes(content)
        refused(lambda: open_bundle(path.parent), path)


def test_a_name_of_no_text_is_no_default_template(tmp_path: Path) -> None:
    path, call = tokenizer_config(tmp_path / "there")
    templates = [{"name": ["x"], "template": "b"}, {"name": "default", "template": "a"}]
    path.write_text(json.dumps({"chat_template": templates}), encoding="utf-8")
    bundle: Any = call()
    assert bundle.chat_template == "a"


def test_a_head_that_is_an_endless_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    np.savez(path, weight=np.zeros(3))
    os.truncate(path, 20 * 10**9)
    assert "18.63 GiB; expected at most 256.0 MiB" in refused(lambda: load_head(path), path)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="without names for what is open")
@pytest.mark.parametrize("door", [problems, responses])
def test_lines_that_are_piped_in_read_as_those_of_a_file(tmp_path: Path, door: Any) -> None:
    path, call = door(tmp_path / "there")
    reading, writing = os.pipe()
    os.write(writing, path.read_bytes())
    os.close(writing)
    read = {problems: read_problems, responses: read_responses}[door]
    try:
        piped, filed = read(f"/dev/fd/{reading}"), call()
    finally:
        os.close(reading)
    assert piped.sha256 == filed.sha256
    assert [row.row for row in piped.rows] == [row.row for row in filed.rows]


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="without names for what is open")
def test_what_is_read_more_than_once_is_no_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"problem": 0, "index": 0, "score": 0.5}\n')
    os.close(writing)
    path = Path(f"/dev/fd/{reading}")
    try:
        assert "is a pipe; expected a file" in refused(lambda: read_external(path, 1, 1), path)
        assert "is a pipe; expected a file" in refused(lambda: read_problems(path, piped=False), path)
    finally:
        os.close(reading)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="without names for what is open")
@pytest.mark.parametrize(
    ("bound", "content", "said"),
    [
        ("LINE_BYTES", b" ", "line 1 is longer than"),
        ("LINES_BYTES", b'{"prompt": "1", "answer": "2"}\n', "goes on after"),
    ],
)
def test_a_pipe_without_an_end_is_left_at_the_bounds_of_a_file(
    monkeypatch: pytest.MonkeyPatch, bound: str, content: bytes, said: str
) -> None:
    # The bounds themselves are gigabytes; what is held to them is the same with smaller ones.
    monkeypatch.setattr(documents, bound, 1000)
    reading, writing = os.pipe()
    os.write(writing, content * 2000)
    path = Path(f"/dev/fd/{reading}")
    try:
        assert said in refused(lambda: read_problems(path), path)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="without pipes in the file system")
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_head_that_is_no_file_is_told_apart_from_one_that_is_missing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "head.npz"
    assert "there is no head file" in refused(lambda: load_head(path), path)
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert f"is a {kind}; expected a file" in refused(lambda: load_head(path), path)
