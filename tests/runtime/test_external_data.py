"""The files that a graph reads its weights from: listed and hashed, and watched as long as the graph is open."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import swift_edge
from swift_edge.bundle import folder as bundles
from swift_edge.bundle import open_bundle, read_manifest, write_bundle
from swift_edge.engine import OpenedModel
from swift_edge.errors import BundleError, ManifestError, MissingFileError, UnsafePathError

Run = Callable[..., Any]
SMALL_STEPS = Path(__file__).parents[2] / "models" / "small-steps"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SMALL_STEPS, tmp_path / "bundle"))


def unlisted(folder: Path, name: str) -> Path:
    """Take a file out of the manifest."""
    path = folder / "swift_edge.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["files"][name]
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def changed(file: Path) -> None:
    """Change its last byte, in place."""
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize("command", ["pick", "inspect"])
def test_weights_that_the_manifest_does_not_list_are_refused(run: Run, folder: Path, command: str) -> None:
    unlisted(folder, "model.onnx.data")
    changed(folder / "model.onnx.data")
    refused = run("pick", "Once", "-m", folder, "-n", "2") if command == "pick" else run("inspect", folder)
    assert (refused.status, refused.out) == (1, "")
    (line,) = refused.err.splitlines()
    assert 'swift_edge.json does not list "model.onnx.data", which model.onnx reads weights from' in line
    assert "expected its SHA-256 there: export or copy the bundle again" in line


# -- wherever the graph names the file -------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str = "hidden.data", *, turned: bool = False) -> bytes:
    """A tensor in a file; `turned` has the value before its key, as no library writes it and every one reads it."""
    key, value = field(1, b"location"), field(2, os.fsencode(name))
    other = field(13, field(1, b"offset"), field(2, b"0"))
    number = varint(2 << 3) + varint(1)
    return number + field(8, b"weight") + other + field(13, *((value, key) if turned else (key, value)))


NODE_WITH_TENSOR = field(1, field(5, field(1, b"value"), field(5, tensor())))
PLACES = {
    "initialiser": field(7, field(5, tensor())),
    "value first": field(7, field(5, tensor(turned=True))),
    "sparse": field(7, field(15, field(1, tensor()))),
    "constant": field(7, NODE_WITH_TENSOR),
    "tensors of an attribute": field(7, field(1, field(5, field(10, tensor())))),
    "sparse attribute": field(7, field(1, field(5, field(22, field(2, tensor()))))),
    "branch": field(7, field(1, field(5, field(6, field(1, field(5, field(11, field(5, tensor())))))))),
    "function": field(25, field(7, field(5, field(5, tensor())))),
    "default of a function": field(25, field(11, field(5, tensor()))),
    "training": field(20, field(1, field(5, tensor()))),
    "second graph": field(7, field(2, b"main")) + field(7, field(5, tensor())),
}


def with_graph(folder: Path, graph: bytes) -> Path:
    (folder / "model.onnx").write_bytes(b"\x08\x08" + graph)  # the version of the format comes first
    write_bundle(folder, read_manifest(SMALL_STEPS))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_the_graph_names_them(folder: Path, place: str) -> None:
    (folder / "hidden.data").write_bytes(b"weights")
    open_bundle(with_graph(folder, PLACES[place]))
    with pytest.raises(ManifestError, match=r'does not list "hidden\.data"'):
        open_bundle(unlisted(folder, "hidden.data"))


@pytest.mark.parametrize("name", ["./hidden.data", "a/../hidden.data"])
def test_names_are_those_of_the_files_that_are_opened(folder: Path, name: str) -> None:
    (folder / "hidden.data").write_bytes(b"weights")
    open_bundle(with_graph(folder, field(7, field(5, tensor(name)))))


@pytest.mark.parametrize(
    "name", ["head.npz", "swift_edge.json", "../hidden.data", "/etc/hostname", "", "*/_ORT_MEM_ADDR_/*", "\udcff"]
)
def test_weights_elsewhere_and_in_files_without_a_fixed_hash_are_refused(folder: Path, name: str) -> None:
    (folder.parent / "hidden.data").write_bytes(b"weights")
    graph = field(7, field(5, tensor(name)))
    with pytest.raises(ManifestError, match="does not list"):
        open_bundle(with_graph(folder, graph))


@pytest.mark.parametrize(
    "graph",
    [b"\x3a\x7flocation", b"\x3blocation", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfflocation", b"\x3dlocation"],
)
def test_a_graph_that_does_not_read_is_refused(folder: Path, graph: bytes) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx does not read as a graph"):
        open_bundle(with_graph(folder, graph))


def test_names_of_other_things_are_not_taken_for_files(folder: Path) -> None:
    metadata = field(14, field(1, b"location"), field(2, b"London"))
    with_graph(folder, metadata + field(7, field(5, field(16, field(1, b"location"), field(2, b"Paris")))))
    open_bundle(folder)


def test_weights_of_a_folder_without_a_manifest_have_to_be_inside(tmp_path: Path) -> None:
    (tmp_path / "outside.data").write_bytes(b"weights")
    folder = tmp_path / "folder"
    folder.mkdir()
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(sizes | {"vocab_size": 16}), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    for name, kind in (("../outside.data", UnsafePathError), ("absent.data", MissingFileError)):
        (folder / "model.onnx").write_bytes(field(7, field(5, tensor(name))))
        with pytest.raises(kind):
            open_bundle(folder)
    (folder / "absent.data").write_bytes(b"weights")
    assert open_bundle(folder).origin == "optimum"


# -- between hashing and reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_file_that_is_exchanged_after_it_was_hashed_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sha256 = bundles._sha256

    def exchanging(path: Path) -> str:
        digest = sha256(path)
        if path.name == name:
            copy = path.with_name("copy")
            shutil.copy2(path, copy)
            copy.replace(path)
        return digest

    monkeypatch.setattr(bundles, "_sha256", exchanging)
    with pytest.raises(BundleError, match=rf"{name} was changed while the bundle was opened"):
        OpenedModel.open(folder, threads=1)


def test_a_template_that_was_read_before_it_was_right_is_found(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    right = template.read_bytes()
    template.write_bytes(right.replace(b"m", b"n"))
    bundle = OpenedModel.bundle_at(folder)
    template.write_bytes(right)
    with pytest.raises(BundleError, match=r"chat_template\.jinja was changed while the bundle was opened"):
        OpenedModel.open(bundle, threads=1)


# -- as long as it is open -------------------------------------------------------------------------------------------

OPEN = """
import os, shutil, sys
from swift_edge import Selector
from swift_edge.errors import BundleError
folder, change = sys.argv[1:]
selector = Selector(folder, threads=1)
before = selector.pick("One day Theo owns 29 carrots.", n=2, max_new_tokens=8)
data = os.path.join(folder, "model.onnx.data")
size = os.stat(data).st_size
if change == "emptied":
    os.truncate(data, 0)
elif change == "cut short":
    os.truncate(data, size - 1)
elif change == "overwritten":
    with open(data, "r+b") as stream:
        stream.write(b"other weights")
elif change == "touched":
    os.utime(data)
elif change == "replaced":
    shutil.copy(data, data + ".new")
    with open(data + ".new", "r+b") as stream:
        stream.write(b"other weights")
    os.replace(data + ".new", data)
else:
    shutil.rmtree(folder)
try:
    after = selector.pick("One day Theo owns 29 carrots.", n=2, max_new_tokens=8)
    assert [each.token_ids for each in after.candidates] == [each.token_ids for each in before.candidates]
    print("the same")
except BundleError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="open files cannot be changed there")
@pytest.mark.parametrize("change", ["emptied", "cut short", "overwritten", "touched", "replaced", "removed"])
def test_weights_that_change_under_an_open_model_are_one_line_and_others_in_their_place_are_fine(
    folder: Path, change: str
) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", OPEN, str(folder), change]
    finished = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert finished.returncode == 0, finished.stderr  # by a signal, where the system ends whoever reads on
    if change in ("touched", "replaced", "removed"):
        assert finished.stdout == "the same\n"
    else:
        assert "model.onnx.data was changed while it was open" in finished.stdout
        assert finished.stdout.count("\n") == 1
