"""A store of labelled candidates on disk: read through memory maps, and written so that an interruption costs little.

    store.json                    the settings, written first
    shard-00000.states.npy        float16 [m, l, w]   features of m tokens; not there where the feature is none
    shard-00000.statistics.npy    float32 [m, 3]      log-probability, entropy, self-certainty of the same tokens
    shard-00000.tokens.npy        int32   [m]         their ids
    shard-00000.positions.npy     int32   [m]         their places in their responses
    shard-00000.jsonl             a line per candidate, by problem and index; written last: without it, no shard

A shard grows in files that end in `.partial`, problem by problem; complete, they are renamed. Whoever goes on with an
interrupted store goes on after its last whole problem, so that interruptions leave no trace in the bytes. One writer at
a time: it holds the lock `.lock`. Readers need none, as they only look at complete shards.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swift_edge.errors import DiskSpaceError, StoreError, SwiftEdgeError
from swift_edge.records import shown
from swift_edge.system.files import clear_abandoned, write_whole
from swift_edge.system.locks import LOCK_NAME, Lock, require_free
from swift_edge.system.machine import DISK_FULL, memory_for
from swift_edge.training.store.format import (
    STORE_NAME,
    TIMINGS_NAME,
    StoredCandidate,
    StoreInfo,
    lines_path,
    read_info,
)
from swift_edge.training.store.shards import CandidateRows, GrowingShard, Shard, check_rows, open_shard

SHARD_BYTES: Final = 64 * 2**20
"""A shard is closed with the problem that takes it past this size."""


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """An opened store.

    >>> store = Store.open("features")
    >>> store.shards[0].states[store.shards[0].starts[3] : store.shards[0].starts[4]]  # those of candidate 3, [m, l, w]
    """

    path: Path
    """The folder."""
    info: StoreInfo
    """The settings that made it."""
    shards: tuple[Shard, ...]
    """Those that are complete; cheap to hold, for their arrays are mapped."""
    candidates: tuple[StoredCandidate, ...]
    """Of all shards, by problem and index."""

    @classmethod
    @memory_for("opening the store")
    def open(cls, path: str | os.PathLike[str]) -> "Store":
        """Open a store, finished or not; one that is being written opens with the shards that are complete.

        Raises `StoreError`, which names the file, for anything that is not sound, and `PlaceInUseError` where that is
        so because another process starts the store over.
        """
        folder = Path(path)
        try:
            return cls.read(folder)
        except StoreError:
            require_free(folder / LOCK_NAME, folder)
            raise

    @classmethod
    def read(cls, folder: Path) -> "Store":
        """Open a store of which it is known that nobody else writes it."""
        info = read_info(folder)
        shards: list[Shard] = []
        problem = 0
        while lines_path(folder, len(shards)).exists():
            shards.append(open_shard(folder, len(shards), info, problem))
            problem = shards[-1].candidates[-1].problem + 1
        return cls(folder, info, tuple(shards), tuple(each for shard in shards for each in shard.candidates))

    @property
    def problems(self) -> int:
        """Problems that are there, 0 to this number less one."""
        return self.candidates[-1].problem + 1 if self.candidates else 0

    @property
    def complete(self) -> bool:
        """Whether all problems are there."""
        return self.problems == self.info.problems


class StoreWriter:
    """Writes a store problem by problem, or goes on with one that was interrupted; a context manager.

    >>> with StoreWriter("features", info) as writer:
    ...     for problem in range(writer.done, info.problems):
    ...         writer.add(problem, rows_of(problem))
    """

    def __init__(
        self, path: str | os.PathLike[str], info: StoreInfo, *, force: bool = False, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Make the folder, or take up the store in it; `force` starts it over, whatever its settings were.

        Nothing is written, and nothing of an old store goes, before the first problem is added. Raises `StoreError` for
        a folder with other files, or with a store of other settings: it names the first that differs; and
        `PlaceInUseError` where somebody else is writing it.
        """
        self.path = Path(path)
        self.info = info
        self.done = 0
        self.candidates = 0
        self.correct = 0
        self.mixed = 0  # problems with right and with wrong candidates
        self.tokens = 0
        self.nbytes = 0
        self._shard_bytes = shard_bytes
        self._failed = False  # in the middle of a write: only opening the files again tells what they hold
        self._closed = False
        self._shard = GrowingShard(self.path, 0, info)
        self._lock = locked_folder(self.path)
        try:
            with _refusals(self.path):
                self.holds_store = self._goes_on(force)  # whether the store in the folder is this one
                if self.holds_store:
                    self._take_up()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "StoreWriter":
        """Nothing more to prepare."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close; what was added stays, whatever happened."""
        self.close()

    @property
    def complete(self) -> bool:
        """Whether all problems have been added."""
        return self.done == self.info.problems

    def add(self, problem: int, candidates: Sequence[CandidateRows]) -> None:
        """Append all candidates of the next problem, `done`, in order.

        Raises `StoreError` for features that are not finite in float16, naming the candidate, and `DiskSpaceError` for
        a full disk; what was added before stays.
        """
        if problem != self.done or self.complete or not candidates:
            raise StoreError(
                f"problem {problem} came with {len(candidates)} candidates; expected problem {self.done} of "
                f"{self.info.problems}, with at least one"
            )
        for rows in candidates:
            check_rows(rows, self.info)
        if self._failed or self._closed:
            happened = "has failed before" if self._failed else "has ended"
            raise StoreError(f"writing to {self.path} {happened}; open the store again to go on with it")
        self._failed = True
        with _refusals(self.path):
            if not self.holds_store:
                self._begin()
            self.nbytes += self._shard.append(candidates)
            self._count([rows.candidate for rows in candidates])
            self._close_shard_if_full()
        self._failed = False

    def close(self) -> None:
        """Close the files, and with the last problem the last shard; can be called again."""
        try:
            with _refusals(self.path):
                if self.complete and self._shard.rows_written:
                    self._shard.publish()
        finally:
            self._release()

    def _release(self) -> None:
        self._closed = True
        self._shard.release()
        if self._lock is not None:
            self._lock.release()

    def _take_up(self) -> None:
        """Go on where the store in the folder ends."""
        store = Store.read(self.path)
        self._count(store.candidates)
        self._shard = GrowingShard.reopen(self.path, len(store.shards), self.info, self.done)
        self.nbytes = sum(file.stat().st_size for file in self.path.glob("shard-*"))
        self._count(self._shard.resumed)
        self._close_shard_if_full()

    def _goes_on(self, force: bool) -> bool:
        """Whether there is a store of these settings to go on with; refuses one of others."""
        files = sorted(self.path.iterdir())
        for file in files:
            # What is written to it would end up elsewhere.
            if file.is_symlink():
                raise StoreError(f"{file} is a link; expected a store that holds its files itself: copy it there")
        # What begins with a dot was left by an interruption, or by a file manager.
        names = [file.name for file in files if not file.name.startswith(".")]
        if STORE_NAME in names:
            if not force:
                self._require_same(read_info(self.path))
                return True
        elif names:
            raise StoreError(
                f"{self.path} holds {min(names)!r} and no {STORE_NAME}; expected a new folder or a store: "
                "name another one with --out"
            )
        return False

    def _begin(self) -> None:
        """Clear away an old store and write the settings; in between it is the old one, without shards."""
        for file in sorted(self.path.iterdir()):
            if file.name == TIMINGS_NAME or file.name.startswith("shard-"):
                file.unlink()
        write_whole(self.path / STORE_NAME, self.info.to_json().encode())
        self.holds_store = True

    def _require_same(self, stored: StoreInfo) -> None:
        name = stored.difference(self.info)
        if name is not None:
            was, now = (shown(json.loads(info.to_json())[name]) for info in (stored, self.info))
            raise StoreError(
                f"{self.path} was collected with {name} {was}, now {name} is {now}; "
                "name another folder with --out, or start over with --force"
            )

    def _count(self, candidates: Iterable[StoredCandidate]) -> None:
        for problem, group in itertools.groupby(candidates, lambda candidate: candidate.problem):
            members = list(group)
            correct = sum(candidate.correct for candidate in members)
            self.done = problem + 1
            self.candidates += len(members)
            self.correct += correct
            self.mixed += 0 < correct < len(members)
            self.tokens += sum(candidate.n_tokens for candidate in members)

    def _close_shard_if_full(self) -> None:
        if self._shard.nbytes > self._shard_bytes:
            self._shard.publish()
            self._shard = GrowingShard(self.path, self._shard.number + 1, self.info)


def locked_folder(folder: Path) -> Lock | None:
    """Make a folder, lock it and clear it of what dead writers left half-written.

    None where this user cannot write to it, so that a complete store can be read.

    Raises `PlaceInUseError` where somebody else holds it, `StoreError` and `DiskSpaceError` where it cannot be made.
    """
    with _refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(folder / LOCK_NAME, folder)
        except OSError as error:
            if isinstance(error, SwiftEdgeError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return None
        clear_abandoned(folder)  # of a file that is not written again as well, such as the times of a complete store
        return lock


@contextlib.contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses while a store is written into one line."""
    try:
        yield
    except SwiftEdgeError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskSpaceError("writing the store", folder, None, shutil.disk_usage(folder).free) from error
        raise StoreError(
            f"{error.filename or folder} cannot be written ({error.strerror or error}); expected a folder that this "
            "user may write to: name another one with --out"
        ) from error
