"""Bundle folders: opened and checked, written and published; damaged ones are refused in one line."""

import dataclasses
import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge import errors
from swift_edge.bundle import (
    Architecture,
    FileRecord,
    Graph,
    HiddenStates,
    Manifest,
    Precision,
    Tokens,
    file_inside,
    open_bundle,
    staging_folder,
    write_bundle,
)
from swift_edge.options import SamplingOptions

MANIFEST = Manifest(
    base_model="tiny",
    base_revision=None,
    fingerprint="ab" * 32,
    architecture=Architecture("llama", 2, 8, 2, 1, 4, 16, 64),
    precision=Precision("int4", 32, 4),
    hidden_states=HiddenStates((0, 1, 2)),
    graph=Graph("in-place"),
    tokens=Tokens((2, 1), 1, None),
    sampling=SamplingOptions(temperature=0.7, top_p=0.9, top_k=20),
    files={},
    exporter={"torch": "2.13.0"},
    parity={"logits": 1e-6},
)


def fill(folder: Path) -> Manifest:
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.onnx.data").write_bytes(b"weights" * 1000)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return write_bundle(folder, MANIFEST)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    fill(made)
    return made


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "swift_edge.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(kind: type[errors.SwiftEdgeError], folder: Path) -> str:
    with pytest.raises(kind) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # noqa: S301
    return message


def test_what_was_written_opens_again(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert dataclasses.replace(bundle.manifest, files={}) == MANIFEST
    assert set(bundle.manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}
    assert bundle.manifest.files["model.onnx.data"].size == 7000
    assert (bundle.model_path, bundle.chat_template, bundle.head_path) == (
        folder / "model.onnx",
        "{{ messages }}",
        None,
    )
    assert bundle.origin == "swift-edge"


def test_a_head_may_be_added_later_but_a_template_may_not(folder: Path) -> None:
    (folder / "head.npz").write_bytes(b"head")
    assert open_bundle(folder).head_path == folder / "head.npz"
    edit(folder, lambda document: document["files"].pop("chat_template.jinja"))
    assert open_bundle(folder).chat_template is None


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=7, max_size=7),
    indices=st.sets(st.integers(0, 5)),
    eos=st.sets(st.integers(0, 5000)),
    name=st.text(st.characters(codec="utf-8"), max_size=1000),
    numbers=st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False, allow_infinity=False)),
    revision=st.none() | st.text(st.characters(codec="utf-8")),
)
def test_any_manifest_comes_back_from_json_unchanged(
    sizes: list[int],
    indices: set[int],
    eos: set[int],
    name: str,
    numbers: dict[str, float],
    revision: str | None,
) -> None:
    manifest = dataclasses.replace(
        MANIFEST,
        base_model=name,
        base_revision=revision,
        architecture=Architecture(name, 5 + sizes[0], *sizes[1:5], 5001, sizes[6]),
        hidden_states=HiddenStates(tuple(sorted(indices))),
        tokens=Tokens(tuple(eos)),
        parity=numbers,
        files={name: FileRecord("0" * 64, 2 ** (sizes[0] % 50))},
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "{}", '{"format_version": "1"}'])
def test_a_manifest_that_is_not_one_is_refused(folder: Path, text: str) -> None:
    (folder / "swift_edge.json").write_text(text)
    assert "swift_edge.json" in refused(errors.ManifestError, folder)


def test_a_manifest_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "swift_edge.json").write_bytes(b'{"base_model": "\xff"}')
    assert "not UTF-8" in refused(errors.ManifestError, folder)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("architecture", "num_layers", "5", 'architecture.num_layers is "5"; expected an integer'),
        ("architecture", "num_layers", True, "architecture.num_layers is true; expected an integer"),
        ("architecture", "head_dim", 0, "architecture.head_dim is 0; expected an integer of at least 1"),
        (
            "architecture",
            "num_layers",
            10**6,
            "architecture.num_layers is 1000000; expected an integer of at most 10000",
        ),
        ("architecture", "num_key_value_heads", -1, "architecture.num_key_value_heads is -1; expected"),
        ("architecture", "hidden_size", 2**40, "architecture.hidden_size is 1099511627776; expected"),
        ("architecture", "context_length", 2**31, "architecture.context_length is 2147483648; expected"),
        ("architecture", "vocab_size", 10**30, "architecture.vocab_size is 1000000000000000000000000000000; expected"),
        ("architecture", "model_type", "x" * 1001, "architecture.model_type is"),
        ("architecture", "vocab_size", None, "architecture.vocab_size is null; expected an integer"),
        ("precision", "name", "fp8", 'precision.name is "fp8"; expected one of fp32, fp16, int8, int4'),
        ("precision", "kv_cache", "int4", 'precision.kv_cache is "int4"; expected int8'),
        (
            "hidden_states",
            "indices",
            [0, 3],
            "hidden_states.indices is [0, 3]; expected ascending integers from 0 to 2",
        ),
        ("hidden_states", "indices", [1, 1], "hidden_states.indices is [1, 1]"),
        ("hidden_states", "indices", [0, "1"], 'hidden_states.indices[1] is "1"; expected an integer'),
        ("hidden_states", "indices", list(range(10**5)), "hidden_states.indices is [0, 1, 2, "),
        ("tokens", "eos_ids", [16], "tokens.eos_ids[0] is 16; expected an id of the vocabulary, from 0 to 15"),
        ("tokens", "eos_ids", [2, -1], "tokens.eos_ids[1] is -1; expected an id of the vocabulary"),
        ("tokens", "eos_ids", [1] * 1001, "tokens.eos_ids is [1, 1, "),
        (
            "tokens",
            "eos_ids",
            [10**30],
            "tokens.eos_ids is 1000000000000000000000000000000; expected an integer of at most",
        ),
        ("tokens", "bos_id", 16, "tokens.bos_id is 16; expected an id of the vocabulary"),
        ("tokens", "pad_id", 2**31, "tokens.pad_id is 2147483648; expected an id"),
        ("sampling", "temperature", 10**400, "sampling.temperature is 1000"),
        ("tokens", "eos_ids", 2, "tokens.eos_ids is 2; expected a list"),
        ("sampling", "temperature", -1, "sampling.temperature is -1.0; expected 0 or a number from 1e-06"),
        ("sampling", "top_p", 0, "sampling.top_p is 0.0"),
        ("sampling", "top_k", -1, "sampling.top_k is -1"),
        ("sampling", "min_p", 2, "sampling.min_p is 2.0"),
        ("sampling", "repetition_penalty", 0, "sampling.repetition_penalty is 0.0"),
        ("files", "model.onnx", {"sha256": "zz", "size": 5}, 'files.model.onnx.sha256 is "zz"; expected 64'),
        ("files", "model.onnx", {"sha256": "0" * 64, "size": -1}, "files.model.onnx.size is -1; expected a number"),
        ("files", "model.onnx", {"sha256": "0" * 64, "size": 10**18}, "files.model.onnx.size is 1000000000000000000"),
        ("files", "\ud800", {"sha256": "0" * 64, "size": 1}, "a name has half a character (U+D800)"),
        ("parity", "x", float("nan"), "NaN is no number of JSON"),
        ("files", "model.onnx", 5, "files.model.onnx is 5; expected an object"),
        ("exporter", "torch", 2, "exporter.torch is 2; expected a string"),
    ],
)
def test_a_wrong_value_is_named(folder: Path, section: str, key: str, value: object, said: str) -> None:
    edit(folder, lambda document: document[section].update({key: value}))
    assert said in refused(errors.ManifestError, folder)


def test_a_name_of_5000_letters_in_the_manifest_is_one_line(folder: Path) -> None:
    edit(folder, lambda document: document["files"].update({"x" * 5000: {"sha256": "0" * 64, "size": 1}}))
    assert "which has 5000 characters" in refused(errors.UnsafePathError, folder)


def test_figures_that_are_no_numbers_and_names_that_are_no_text_can_be_written(folder: Path) -> None:
    figures = {"logits": float("nan"), "nested": {"states": [float("inf"), 1.0]}}
    write_bundle(folder, dataclasses.replace(MANIFEST, base_model="caf\udce9", parity=figures))
    manifest = open_bundle(folder).manifest
    assert manifest.base_model == "caf?"
    assert manifest.parity == {"logits": None, "nested": {"states": [None, 1.0]}}


def test_a_manifest_of_before_there_were_int8_keys_and_values_reads(folder: Path) -> None:
    edit(folder, lambda document: document["precision"].pop("kv_cache"))
    assert open_bundle(folder).manifest.precision == Precision("int4", 32, 4)


def test_a_missing_key_is_named(folder: Path) -> None:
    edit(folder, lambda document: document["architecture"].pop("head_dim"))
    assert "architecture.head_dim is missing; expected an integer" in refused(errors.ManifestError, folder)
    edit(folder, lambda document: document.pop("architecture"))
    assert "architecture is missing; expected an object" in refused(errors.ManifestError, folder)


def test_a_newer_format_is_refused_even_if_nothing_else_is_known(folder: Path) -> None:
    (folder / "swift_edge.json").write_text('{"format_version": 2, "weights": []}')
    message = refused(errors.NewerFormatError, folder)
    assert "format version 2" in message
    assert "up to version 1" in message
    assert "pip install --upgrade swift-edge" in message


def test_unknown_keys_of_this_version_are_passed_over(folder: Path) -> None:
    def add(document: dict[str, Any]) -> None:
        document["colour"] = "blue"
        document["graph"]["colour"] = "blue"

    edit(folder, add)
    assert open_bundle(folder).manifest.graph == Graph("in-place")


def test_a_changed_file_is_found_by_its_hash_unless_hashes_are_off(folder: Path) -> None:
    data = folder / "model.onnx.data"
    found = open_bundle(folder).manifest.files["model.onnx.data"].sha256
    data.write_bytes(b"Weights" * 1000)
    message = refused(errors.DamagedFileError, folder)
    assert "model.onnx.data has SHA-256 " in message
    assert found[:12] in message
    assert "export or copy the bundle again" in message
    assert open_bundle(folder, hashes=False).model_path.is_file()


def test_a_truncated_file_is_found_by_its_size(folder: Path) -> None:
    os.truncate(folder / "model.onnx.data", 6999)
    assert "size 6999, its manifest says 7000" in refused(errors.DamagedFileError, folder)
    with pytest.raises(errors.DamagedFileError):
        open_bundle(folder, hashes=False)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    assert "'model.onnx.data'" in refused(errors.MissingFileError, folder)


def test_a_manifest_without_a_graph_is_refused(folder: Path) -> None:
    edit(folder, lambda document: document["files"].pop("model.onnx"))
    assert "does not list 'model.onnx'" in refused(errors.ManifestError, folder)


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc/hostname", "..\\outside", "C:\\outside", "C:outside", "", "a\0b"]
)
def test_names_that_lead_out_are_refused(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_bytes(b"")
    edit(folder, lambda document: document["files"].update({name: {"sha256": "0" * 64, "size": 0}}))
    assert "expected a file inside the folder" in refused(errors.UnsafePathError, folder)


@pytest.mark.parametrize("listed", [True, False])
def test_links_that_lead_out_are_refused_listed_or_not(folder: Path, listed: bool) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"weights" * 1000)
    name = "model.onnx.data" if listed else "unlisted.data"
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    assert f"names the file '{name}', which is a link to" in refused(errors.UnsafePathError, folder)


def test_links_within_the_folder_and_to_the_folder_are_fine(folder: Path) -> None:
    (folder / "again.onnx").symlink_to("model.onnx")
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert open_bundle(link).model_path == link / "model.onnx"


@given(st.text())
def test_a_name_is_inside_or_refused(name: str) -> None:
    folder = Path("/nowhere/bundle")
    try:
        path = file_inside(folder, name)
    except errors.UnsafePathError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)


def test_folders_that_are_none_say_what_they_hold(tmp_path: Path) -> None:
    assert "does not exist" in refused(errors.UnknownFolderError, tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(errors.UnknownFolderError, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "holds nothing; expected swift_edge.json" in refused(errors.UnknownFolderError, tmp_path / "empty")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    assert f"run: swift-edge export {tmp_path} --out DIR" in refused(errors.UnknownFolderError, tmp_path)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_staging_folder_becomes_the_bundle(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with staging_folder(out) as staging:
        assert not out.exists()
        assert staging.parent == out.parent
        fill(staging)
    assert open_bundle(out).manifest.base_model == "tiny"
    assert entries(out.parent) == ["b"]
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, SystemExit])
def test_nothing_stays_after_an_exception(tmp_path: Path, kind: type[BaseException]) -> None:
    def broken_off() -> None:
        with staging_folder(tmp_path / "a" / "b") as staging:
            fill(staging)
            raise kind

    with pytest.raises(kind):
        broken_off()
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "cause", [OSError(errno.ENOSPC, "No space left on device"), OSError("Not enough free space to write 8 bytes")]
)
def test_a_disk_that_fills_up_is_named_and_nothing_stays(tmp_path: Path, cause: OSError) -> None:
    with pytest.raises(errors.DiskSpaceError, match="are free; free some space"), staging_folder(tmp_path / "out"):
        raise cause
    assert entries(tmp_path) == []


def test_a_folder_without_a_manifest_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(errors.BundleError, match="complete bundle"), staging_folder(tmp_path / "out") as staging:
        (staging / "model.onnx").write_text("")
    assert entries(tmp_path) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staging_folder(tmp_path / "out") as staging:
        fill(staging)
    assert open_bundle(tmp_path / "out").chat_template is not None


@pytest.mark.parametrize("replace", [True, False])
def test_other_folders_and_files_are_never_replaced(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("sir")
    for name in ("folder", "file"):
        with pytest.raises(errors.OutputExistsError, match="--out"), staging_folder(tmp_path / name, replace=replace):
            pytest.fail("the body must not run")
    assert (tmp_path / "folder" / "letter.txt").read_text() == "dear"
    assert (tmp_path / "file").read_text() == "sir"
    assert entries(tmp_path) == ["file", "folder"]


def test_a_bundle_is_replaced_only_when_asked_and_only_when_the_new_one_is_complete(folder: Path) -> None:
    with pytest.raises(errors.OutputExistsError, match="already holds a bundle"), staging_folder(folder):
        pytest.fail("the body must not run")
    with pytest.raises(KeyboardInterrupt), staging_folder(folder, replace=True):
        raise KeyboardInterrupt
    assert open_bundle(folder).manifest.base_model == "tiny"
    with staging_folder(folder, replace=True) as staging:
        fill(staging)
        write_bundle(staging, dataclasses.replace(MANIFEST, base_model="new"))
    assert open_bundle(folder).manifest.base_model == "new"
    assert entries(folder.parent) == ["bundle"]


def test_a_bundle_with_a_file_of_its_own_is_not_replaced(folder: Path) -> None:
    (folder / "head.npz").write_bytes(b"a night's work")
    with pytest.raises(errors.OutputExistsError, match=r"'head\.npz'"), staging_folder(folder, replace=True):
        pytest.fail("the body must not run")
    assert (folder / "head.npz").read_bytes() == b"a night's work"


def test_a_head_that_was_published_may_be_replaced(tmp_path: Path) -> None:
    made = tmp_path / "bundle"
    made.mkdir()
    (made / "head.npz").write_bytes(b"first head")
    assert "head.npz" in fill(made).files
    (made / "head.npz").write_bytes(b"another head, and a longer one")
    assert open_bundle(made).head_path == made / "head.npz"
