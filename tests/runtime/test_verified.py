"""Files that were hashed before are not hashed again, as long as the system knows of no change to them."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from swift_edge.bundle import folder as bundles
from swift_edge.bundle import open_bundle, verified, write_bundle
from swift_edge.engine import ModelSession, OpenedModel
from swift_edge.engine import model as opening
from swift_edge.errors import BundleError, DamagedFileError, TokenizerError
from swift_edge.system import cache_folder as caches
from swift_edge.system.cache_folder import cache_folder

SMALL_STEPS = Path(__file__).parents[2] / "models" / "small-steps"
HASHED = {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SMALL_STEPS, tmp_path / "bundle"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for bundles of any size and age."""
    monkeypatch.setenv("SWIFT_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "LEAST_BYTES", 0)
    monkeypatch.setattr(verified, "SETTLED_NS", -(10**9))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], set[str]]:
    """Open a bundle, and tell which files were hashed."""
    names: list[str] = []
    sha256 = bundles._sha256

    def watched(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(bundles, "_sha256", watched)

    def call(folder: Path) -> set[str]:
        names.clear()
        assert opened(folder).warnings == ()
        assert len(set(names)) == len(names)
        return set(names)

    return call


def opened(folder: Path) -> OpenedModel:
    return OpenedModel.open(str(folder), None, None, 1)


def records(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_a_second_start_hashes_nothing(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], tmp_path: Path
) -> None:
    assert hashed(folder) == HASHED
    assert hashed(folder) == set()
    (tmp_path / "link").symlink_to(folder)
    assert hashed(tmp_path / "link") == set()
    assert len(records(cache)) == 1


def test_collecting_keeps_the_same_records(folder: Path, cache: Path, hashed: Callable[[Path], set[str]]) -> None:
    OpenedModel.open(folder, threads=1)
    assert hashed(folder) == set()


def test_a_bundle_that_is_only_looked_at_is_hashed_every_time(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that the system does not know of: as if the record had been made of the damaged file."""
    hashed(folder)
    damage(folder / "model.onnx.data")
    monkeypatch.setattr(verified.VerifiedFiles, "known", lambda _: True)
    opened(folder)
    with pytest.raises(DamagedFileError, match=r"model\.onnx\.data"):
        open_bundle(folder)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 10**5, b'{"version": NaN}', b"1" * 5000, b"{}", b"sparse"])
def test_a_record_that_is_damaged_or_huge_is_made_again(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], content: bytes
) -> None:
    hashed(folder)
    (record,) = records(cache)
    record.write_bytes(content)
    if content == b"sparse":
        os.truncate(record, 20 * 10**9)
    assert hashed(folder) == HASHED
    assert hashed(folder) == set()


def damage(file: Path) -> None:
    """Change a byte, and set the time of the last write back."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("name", sorted(HASHED))
def test_a_file_that_changes_is_found_though_its_size_and_time_are_the_same(
    folder: Path, cache: Path, name: str
) -> None:
    opened(folder)
    damage(folder / name)
    for _ in range(2):  # what was wrong is not recorded
        with pytest.raises(DamagedFileError, match=f"{name} has SHA-256"):
            opened(folder)


def touch(file: Path) -> None:
    os.utime(file)


def replace(file: Path) -> None:
    copy = file.with_name("copy")
    shutil.copy2(file, copy)
    copy.replace(file)


@pytest.mark.parametrize("change", [touch, replace])
def test_a_file_that_may_have_changed_is_hashed_again_once(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], change: Callable[[Path], None]
) -> None:
    hashed(folder)
    change(folder / "model.onnx.data")
    assert hashed(folder) == HASHED
    assert hashed(folder) == set()
    assert len(records(cache)) == 1


def test_hashes_that_the_manifest_no_longer_gives_are_not_taken_for_right(folder: Path, cache: Path) -> None:
    opened(folder)
    manifest = folder / "swift_edge.json"
    document = json.loads(manifest.read_text())
    document["files"]["model.onnx.data"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document))
    with pytest.raises(DamagedFileError, match=r"its manifest says 0{12}\.\.\."):
        opened(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"{}"])
def test_a_record_that_does_not_read_is_made_again(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], content: bytes
) -> None:
    hashed(folder)
    (record,) = records(cache)
    record.write_bytes(content)
    assert hashed(folder) == HASHED
    assert hashed(folder) == set()


def test_a_record_of_another_version_counts_for_nothing(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed(folder)
    monkeypatch.setattr(verified, "RECORD_VERSION", 2)
    assert hashed(folder) == HASHED


def test_files_written_a_moment_ago_are_not_recorded(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write at once could leave their times as they are."""
    monkeypatch.setattr(verified, "SETTLED_NS", 3600 * 10**9)
    assert hashed(folder) == hashed(folder) == HASHED
    assert not cache.exists()


def test_a_small_bundle_leaves_nothing_behind(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "LEAST_BYTES", sum(path.stat().st_size for path in folder.iterdir()))
    opened(folder)
    assert not cache.exists()


@pytest.mark.parametrize("value", ["", "off"])
def test_the_cache_can_be_switched_off(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.chdir(folder.parent)
    hashed(folder)
    monkeypatch.setenv("SWIFT_EDGE_CACHE", value)
    assert hashed(folder) == hashed(folder) == HASHED
    assert sorted(os.listdir()) == ["bundle", "cache"]


def test_a_cache_that_cannot_be_written_is_a_warning_where_it_was_asked_for(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_bytes(b"a file")
    (warning,) = opened(folder).warnings
    assert "SWIFT_EDGE_CACHE names " in warning
    assert str(cache) in warning
    assert "Not a directory" in warning
    assert "set it to off" in warning
    monkeypatch.delenv("SWIFT_EDGE_CACHE")
    monkeypatch.setattr(caches, "cache_folder", lambda: cache)
    assert opened(folder).warnings == ()


def test_only_the_latest_records_stay(
    folder: Path, cache: Path, hashed: Callable[[Path], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "MOST_RECORDS", 2)
    copies = [Path(shutil.copytree(folder, folder.with_name(f"bundle-{number}"))) for number in range(3)]
    for copy in copies:
        assert hashed(copy) == HASHED
    assert len(records(cache)) == 2
    assert hashed(copies[2]) == hashed(copies[1]) == set()
    assert hashed(copies[0]) == HASHED


def test_a_damaged_graph_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(folder / "model.onnx")
    monkeypatch.setattr(opening, "ModelSession", lambda *_: pytest.fail("the graph was opened"))
    with pytest.raises(DamagedFileError, match=r"model\.onnx has SHA-256"):
        opened(folder)


def test_damaged_weights_are_the_error_whatever_onnxruntime_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(folder / "model.onnx.data")

    def refuse(*_: object) -> ModelSession:
        raise BundleError("the graph does not open")

    monkeypatch.setattr(opening, "ModelSession", refuse)
    with pytest.raises(DamagedFileError, match=r"model\.onnx\.data has SHA-256"):
        opened(folder)


def test_a_tokenizer_that_does_not_read_is_found_at_the_start(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    write_bundle(folder, open_bundle(SMALL_STEPS).manifest)
    with pytest.raises(TokenizerError, match="does not read as a tokenizer"):
        opened(folder)


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, ("~", ".cache", "swift-edge")),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, ("/fast", "swift-edge")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ("~", ".cache", "swift-edge")),
        ("darwin", {}, ("~", "Library", "Caches", "swift-edge")),
        ("win32", {}, ("~", "AppData", "Local", "swift-edge", "Cache")),
        ("win32", {"LOCALAPPDATA": "/local"}, ("/local", "swift-edge", "Cache")),
        ("linux", {"SWIFT_EDGE_CACHE": "/mine", "XDG_CACHE_HOME": "/fast"}, ("/mine",)),
    ],
)
def test_the_folder_is_where_the_platform_has_it(
    platform: str, environment: dict[str, str], expected: Sequence[str]
) -> None:
    assert cache_folder(environment, platform) == Path(*expected).expanduser()
