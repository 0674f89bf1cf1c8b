"""The bundle as a folder: opened and checked file by file, or written beside its place and moved there in one step."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace as replace_fields
from pathlib import Path

from swift_edge.bundle import foreign
from swift_edge.bundle.external_data import check_external_data
from swift_edge.bundle.manifest import (
    HEAD_NAME,
    MANIFEST_BYTES,
    MANIFEST_NAME,
    MODEL_NAME,
    TEMPLATE_BYTES,
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    Bundle,
    FileRecord,
    Manifest,
    file_inside,
    read_text,
)
from swift_edge.bundle.verified import changed_file
from swift_edge.errors import (
    MIB,
    BundleError,
    DamagedFileError,
    DiskSpaceError,
    ManifestError,
    MissingFileError,
    OutputExistsError,
    SwiftEdgeError,
    UnknownFolderError,
    size_text,
)
from swift_edge.system.files import exchange, write_whole
from swift_edge.system.locks import Lock, lock_beside
from swift_edge.system.machine import DISK_FULL, memory_for

PARTIAL = ".partial"
"""At the end of the name of a bundle that is being written."""
OLD = ".old"
"""At the end of the name of a folder that holds the bundle which is replaced."""

TOKENIZER_BYTES = 256 * MIB
"""Most of a tokenizer: those of the largest vocabularies have 35 MB."""


@memory_for("opening the bundle")
def open_bundle(path: str | os.PathLike[str], *, hashes: bool = True) -> Bundle:
    """Open a folder and check its files against its manifest: presence and size, then SHA-256 unless `hashes` is off.

    A folder without a manifest opens too if optimum or onnxruntime-genai wrote it; such a folder has no sizes and
    hashes to check. Raises a leaf of `BundleError` that names the file, what was found and what was expected.
    """
    folder = Path(path)
    with _refusals(folder):
        bundle = _open_bundle(folder)
        size = bundle.tokenizer_path.stat().st_size
        if size > TOKENIZER_BYTES:  # it is read whole, by a library that does not ask
            raise BundleError(
                f"{bundle.tokenizer_path} has {size_text(size)}; expected at most {size_text(TOKENIZER_BYTES)}: "
                "copy it again from the original model"
            )
    if hashes:
        check_hashes(bundle, bundle.manifest.fixed_files)
        with _refusals(folder):
            check_external_data(bundle)
    return bundle


def check_hashes(bundle: Bundle, names: Iterable[str]) -> None:
    """Read files of a bundle and compare their SHA-256 with the manifest's; raises `DamagedFileError`."""
    with _refusals(bundle.path):
        for name in names:
            expected = bundle.manifest.files[name].sha256
            digest = _sha256(bundle.path / name)
            if digest != expected:
                raise DamagedFileError(bundle.path / name, "SHA-256", digest[:12] + "...", expected[:12] + "...")


def check_template(bundle: Bundle) -> None:
    """Raise `BundleError` if the chat template is no longer the one that was read when the folder was."""
    path = bundle.path / TEMPLATE_NAME
    if TEMPLATE_NAME in bundle.manifest.files and read_text(path, TEMPLATE_BYTES) != bundle.chat_template:
        raise changed_file(path, "while the bundle was opened")


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Tell what the system refuses as an error of the bundle."""
    try:
        yield
    except SwiftEdgeError:
        raise
    except OSError as error:
        raise BundleError(
            f"{error.filename or folder} cannot be read ({error.strerror}); expected a bundle that this user may read: "
            "check the rights of the folder and its files"
        ) from error


def _open_bundle(folder: Path) -> Bundle:
    if not folder.is_dir():
        description = "is a file" if folder.exists() else "does not exist"
        if not folder.exists() and (old := _moved_away(folder)) is not None:
            raise UnknownFolderError(
                f"{folder} does not exist, but {old} holds the bundle that an export was about to replace when it was "
                f"killed; expected it at {folder}: move it there, or run that export again"
            )
        raise UnknownFolderError(
            f"{folder} {description}; expected a bundle folder, as swift-edge export MODEL --out DIR makes"
        )
    if not (folder / MANIFEST_NAME).is_file():
        bundle = foreign.recognise(folder)
        if bundle is None:
            raise UnknownFolderError(_unknown_folder(folder))
        _check_links(folder)
        return bundle
    _check_links(folder)
    manifest = read_manifest(folder)
    for name in (MODEL_NAME, TOKENIZER_NAME):
        if name not in manifest.files:
            raise ManifestError(
                f"{folder / MANIFEST_NAME} does not list {name!r}, which every bundle has; export the bundle again"
            )
    # Sizes of all files before the first hash: a copy that broke off is found at once.
    for name in manifest.fixed_files:
        file, expected = file_inside(folder, name), manifest.files[name].size
        if not file.is_file():
            raise MissingFileError(folder, name)
        size = file.stat().st_size
        if size != expected:
            raise DamagedFileError(file, "size", str(size), str(expected))
    head = folder / HEAD_NAME
    return Bundle(
        path=folder,
        manifest=manifest,
        model_path=folder / MODEL_NAME,
        tokenizer_path=folder / TOKENIZER_NAME,
        # A template that the manifest does not list was put there later: it would change every prompt unnoticed.
        chat_template=read_text(folder / TEMPLATE_NAME, TEMPLATE_BYTES) if TEMPLATE_NAME in manifest.files else None,
        # A head may well be added later, and says itself which model it is for.
        head_path=head if head.is_file() else None,
    )


def read_manifest(folder: Path) -> Manifest:
    """Read `swift_edge.json` of a folder, without a look at the other files."""
    path = folder / MANIFEST_NAME
    return Manifest.from_json(read_text(path, MANIFEST_BYTES), path)


def write_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Record every file of `folder` in the manifest, write it as the last file, and return it."""
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name != MANIFEST_NAME:
            files[name] = FileRecord(sha256=_sha256(file_inside(folder, name)), size=file.stat().st_size)
    manifest = replace_fields(manifest, files=files)
    write_whole(folder / MANIFEST_NAME, manifest.to_json().encode())
    return manifest


@contextlib.contextmanager
def staging_folder(out: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give a new folder beside `out`; on success it becomes `out` in one step, on any exception it goes.

    `out` must not exist or be empty (`OutputExistsError`); with `replace` it may be a bundle of swift-edge, which
    stays as it is until the new one is complete. A disk that fills up on the way is a `DiskSpaceError`; another process
    that writes to `out` is a `PlaceInUseError`. What earlier ones left beside `out` when they were killed goes, but an
    old bundle that was on its way out comes back.
    """
    target = Path(out).resolve()  # a link to a folder: its target is replaced, not the link
    _check_replaceable(target, replace)
    made: list[Path] = []
    staging: Path | None = None
    lock: Lock | None = None
    try:
        try:
            _make_parents(target.parent, made)
            lock = Lock(lock_beside(target), target)
            _clear_abandoned(target)
            _check_replaceable(target, replace)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=PARTIAL, dir=target.parent))
        except OSError as error:
            if isinstance(error, SwiftEdgeError):
                raise
            raise BundleError(
                f"no folder can be made in {target.parent} ({error.strerror}); expected a place to write to: "
                "name another one with --out"
            ) from error
        yield staging
        publish(staging, target, replace=replace)
        lock.release()
    except BaseException as error:
        full = _disk_full(error, target.parent)
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            lock.release()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if full is not None:
            raise full from error
        raise


def publish(staging: Path, out: Path, *, replace: bool = False) -> None:
    """Move a complete staging folder of the same disk to `out`, under the conditions of `staging_folder`."""
    if not (staging / MANIFEST_NAME).is_file():
        raise BundleError(f"{staging} has no {MANIFEST_NAME}; expected a complete bundle: call write_bundle first")
    _check_replaceable(out, replace)
    # mkdtemp makes a folder for its owner alone; the bundle gets the rights that any new folder has.
    mask = os.umask(0)
    os.umask(mask)
    staging.chmod(0o777 & ~mask)
    if not out.is_dir():
        os.replace(staging, out)
        return
    if exchange(staging, out):  # in one step: there is no moment without a bundle at `out`
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=OLD, dir=out.parent))
    try:
        # Killed here, the next export of this bundle puts the old one back, and opening it says where that is.
        os.replace(out, old / "bundle")
        try:
            os.replace(staging, out)
        except BaseException:
            os.replace(old / "bundle", out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _clear_abandoned(out: Path) -> None:
    """Remove what processes left beside `out` that were killed, and bring back the old bundle if they had moved it."""
    if not os.path.lexists(out) and (old := _moved_away(out)) is not None:
        os.replace(old, out)
    for ending in (PARTIAL, OLD):
        for folder in _made_beside(out, ending):
            shutil.rmtree(folder, ignore_errors=True)


def _moved_away(out: Path) -> Path | None:
    """The bundle that was at `out` when a process was killed that was about to replace it."""
    kept = [folder / "bundle" for folder in _made_beside(out, OLD) if (folder / "bundle" / MANIFEST_NAME).is_file()]
    return max(kept, key=lambda bundle: bundle.parent.stat().st_mtime_ns, default=None)


def _made_beside(out: Path, ending: str) -> list[Path]:
    """Folders that were made to replace `out`, as `mkdtemp` names them."""
    pattern = re.compile(rf"\.{re.escape(out.name)}-[a-z0-9_]{{8}}{re.escape(ending)}")
    try:
        return [
            Path(entry)
            for entry in os.scandir(out.parent)
            if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    except OSError:
        return []


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_links(folder: Path) -> None:
    """Refuse links that lead out, in files that no manifest lists too: the graph may name them as external data."""
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent, name)
            if path.is_symlink():
                file_inside(folder, path.relative_to(folder).as_posix())


def _unknown_folder(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    contents = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"
    message = (
        f"{folder} holds {contents}; expected {MANIFEST_NAME}, or a folder that optimum or onnxruntime-genai wrote"
    )
    if "config.json" in names and any(name.endswith((".safetensors", ".bin")) for name in names):
        message += f"; this looks like a transformers model, run: swift-edge export {folder} --out DIR"
    else:
        message += "; swift-edge export MODEL --out DIR makes a bundle"
    return message


def _check_replaceable(out: Path, replace: bool) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise OutputExistsError(f"{out} exists and is not a folder; expected a new folder: name another one with --out")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise OutputExistsError(f"{out} exists and is not empty; expected a new folder: name another one with --out")
    if not replace:
        raise OutputExistsError(
            f"{out} already holds a bundle; expected a new folder: name another --out, or replace it with --force"
        )
    # Files that someone added, such as a head that took a night to train, would go with the old bundle.
    own_files = {MANIFEST_NAME, *read_manifest(out).files}
    added = sorted({file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir()} - own_files)
    if added:
        raise OutputExistsError(
            f"{out} holds {added[0]!r}, which its manifest does not list; move it away first, "
            "or name another folder with --out"
        )


def _make_parents(folder: Path, made: list[Path]) -> None:
    """Make a folder and its parents, and note in `made` those that are new, the innermost first."""
    if not folder.exists():
        _make_parents(folder.parent, made)
        folder.mkdir()
        made.insert(0, folder)


def _disk_full(error: BaseException, folder: Path) -> DiskSpaceError | None:
    """The error to show if it was the disk that ended the work."""
    if isinstance(error, SwiftEdgeError) or not isinstance(error, Exception):
        return None
    # NumPy says it in words, without the code.
    says_full = isinstance(error, OSError) and (error.errno in DISK_FULL or "free space" in str(error))
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    # Libraries that write in C may raise anything; what they left behind still fills the disk.
    return DiskSpaceError("writing the bundle", folder, None, free) if says_full or free < MIB else None
