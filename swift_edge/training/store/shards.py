"""Part of a store: its arrays and lines as files, mapped when they are read, grown problem by problem when written."""

import contextlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from swift_edge.errors import StoreError
from swift_edge.system.array_files import map_array
from swift_edge.training.store.format import (
    AGAIN,
    STATISTICS,
    StoredCandidate,
    StoreInfo,
    array_path,
    lines_path,
    partial_path,
    read_lines,
)

_HEADER_BYTES: Final = 128
"""Length of the header of every array; numpy pads it so that the first axis can grow."""
_DTYPES: Final = {"states": "<f2", "statistics": "<f4", "tokens": "<i4", "positions": "<i4"}


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Some candidates and the arrays of their tokens; the arrays are mapped, and read-only."""

    candidates: tuple[StoredCandidate, ...]
    """Whole problems, in order."""
    states: NDArray[np.float16]  # [m, l, w]
    """Features of the tokens; [m, 0, 0] where none are kept."""
    statistics: NDArray[np.float32]  # [m, 3]
    """The columns are `STATISTICS`."""
    token_ids: NDArray[np.int32]  # [m]
    """The tokens."""
    positions: NDArray[np.int32]  # [m]
    """Place of each token in its response, from 0."""
    starts: NDArray[np.int64]  # [c + 1]
    """Candidate i of c owns the rows starts[i] to starts[i + 1]."""

    def require_whole(self) -> None:
        """Raise `StoreError` for a file that was cut short since it was mapped: a look at it would end the process."""
        for array in (self.states, self.statistics, self.token_ids, self.positions):
            _require_whole(array)


@dataclass(frozen=True, slots=True, eq=False)
class CandidateRows:
    """A candidate on its way into a store."""

    candidate: StoredCandidate
    """Its line; `tokens` is the m of the arrays."""
    states: NDArray[Any]  # [m, l, w]
    """Features, float16 or float32."""
    statistics: NDArray[Any]  # [m, 3]
    """The columns are `STATISTICS`."""
    positions: NDArray[Any]  # [m]
    """Which of its tokens these are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.states.nbytes + self.statistics.nbytes + self.positions.nbytes)


class GrowingShard:
    """The shard that is being written: its files, which exist from its first problem on."""

    def __init__(self, folder: Path, number: int, info: StoreInfo) -> None:
        """Name the files of shard `number`; nothing is opened yet."""
        self.number = number
        self.nbytes = 0
        self.resumed: list[StoredCandidate] = []
        self.rows_written = False
        self._folder = folder
        self._info = info
        self._rows = 0
        self._paths = {name: array_path(folder, number, name) for name in info.array_names}
        self._paths["lines"] = lines_path(folder, number)
        self._files: dict[str, BinaryIO] = {}
        self._opened = contextlib.ExitStack()

    @classmethod
    def reopen(cls, folder: Path, number: int, info: StoreInfo, problem: int) -> "GrowingShard":
        """Take up what an interruption left of shard `number`, which begins with `problem`: its whole problems."""
        shard = cls(folder, number, info)
        for path in shard._paths.values():
            # The names changed one by one when it was complete; the lines came last, and have not come.
            if path.exists():
                os.replace(path, partial_path(path))
        if not all(partial_path(path).exists() for path in shard._paths.values()):
            for path in shard._paths.values():
                partial_path(path).unlink(missing_ok=True)
            return shard
        candidates, sizes = [], []
        for candidate, line in read_lines(partial_path(shard._paths["lines"]), info, growing=True):
            candidates.append(candidate)
            sizes.append(len(line))
        rows = min(shard._rows_in(name) for name in info.array_names)
        shard.resumed = _whole_problems(candidates, info, problem, rows)
        shard._rows = sum(candidate.tokens for candidate in shard.resumed)
        lines = sum(sizes[: len(shard.resumed)])
        shard._open("r+b")
        for name, file in shard._files.items():
            size = lines if name == "lines" else _HEADER_BYTES + shard._rows * shard._row_bytes(name)
            file.truncate(size)
            file.seek(size)
            shard.nbytes += size
        shard.rows_written = bool(shard.resumed)
        return shard

    def append(self, candidates: Sequence[CandidateRows]) -> int:
        """Write the rows and lines of one problem; returns their bytes."""
        before = self.nbytes
        if not self._files:
            self._open("w+b")
            for name in self._info.array_names:
                self._write_header(name)
                self.nbytes += _HEADER_BYTES
        for rows in candidates:
            token_ids = np.array(rows.candidate.token_ids, np.int64)[rows.positions]
            arrays = {
                "states": rows.states,
                "statistics": rows.statistics,
                "tokens": token_ids,
                "positions": rows.positions,
            }
            for name in self._info.array_names:
                array = np.ascontiguousarray(arrays[name], _DTYPES[name])
                self._files[name].write(array.data)
                self.nbytes += array.nbytes
        text = "".join(rows.candidate.to_line() + "\n" for rows in candidates).encode()
        for name in self._info.array_names:
            self._files[name].flush()
        # After the arrays: a line that is there has its rows.
        self._files["lines"].write(text)
        self._files["lines"].flush()
        self._rows += sum(rows.candidate.tokens for rows in candidates)
        self.nbytes += len(text)
        self.rows_written = True
        return self.nbytes - before

    def publish(self) -> None:
        """Complete the files and give them their names, the lines last; an interruption in between can be mended."""
        self.rows_written = False
        for name in self._info.array_names:
            self._files[name].seek(0)
            self._write_header(name)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.release()
        for path in self._paths.values():
            os.replace(partial_path(path), path)

    def release(self) -> None:
        """Close the files as they are."""
        self._files = {}
        with contextlib.suppress(OSError):  # what a full disk did not take is not part of the shard
            self._opened.close()

    def _open(self, mode: Literal["r+b", "w+b"]) -> None:
        for name, path in self._paths.items():
            self._files[name] = self._opened.enter_context(open(partial_path(path), mode))  # noqa: SIM115

    def _shape(self, name: str) -> tuple[int, ...]:
        if name == "states":
            return self._rows, self._info.slices, self._info.width
        return (self._rows, len(STATISTICS)) if name == "statistics" else (self._rows,)

    def _row_bytes(self, name: str) -> int:
        return int(np.dtype(_DTYPES[name]).itemsize * np.prod(self._shape(name)[1:], dtype=np.int64))

    def _rows_in(self, name: str) -> int:
        """Whole rows in the file of an array, whatever its header says."""
        size = partial_path(self._paths[name]).stat().st_size
        return max(0, size - _HEADER_BYTES) // self._row_bytes(name)

    def _write_header(self, name: str) -> None:
        header = {"descr": _DTYPES[name], "fortran_order": False, "shape": self._shape(name)}
        np.lib.format.write_array_header_1_0(self._files[name], header)
        assert self._files[name].tell() == _HEADER_BYTES


def open_shard(folder: Path, number: int, info: StoreInfo, problem: int) -> Shard:
    """Map the arrays of a shard and check that they fit its lines, which begin with `problem`."""
    path = lines_path(folder, number)
    candidates = tuple(candidate for candidate, _ in read_lines(path, info))
    following = [(problem, 0)]
    for line, candidate in enumerate(candidates, start=1):
        if (candidate.problem, candidate.index) not in following:
            raise StoreError(
                f"{path} line {line} holds candidate {candidate.index} of problem {candidate.problem}; expected "
                f"candidate {following[0][1]} of problem {following[0][0]}: {AGAIN}"
            )
        following = [(candidate.problem, candidate.index + 1), (candidate.problem + 1, 0)]
    if not candidates:
        raise StoreError(f"{path} has no lines; expected one per candidate: {AGAIN}")
    starts = np.concatenate([[0], np.cumsum([candidate.tokens for candidate in candidates])]).astype(np.int64)
    rows = int(starts[-1])
    shapes = {
        "states": (rows, info.slices, info.width),
        "statistics": (rows, len(STATISTICS)),
        "tokens": (rows,),
        "positions": (rows,),
    }
    arrays = {name: _map(array_path(folder, number, name), _DTYPES[name], shapes[name]) for name in info.array_names}
    states = arrays.get("states", np.empty((rows, 0, 0), np.float16))
    return Shard(candidates, states, arrays["statistics"], arrays["tokens"], arrays["positions"], starts)


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map an array of exactly this type and shape."""
    try:
        array = map_array(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} does not read as an array ({error}): {AGAIN}") from error
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise StoreError(
            f"{path} holds {array.dtype} {list(array.shape)}; expected {np.dtype(dtype)} {list(shape)}, as its .jsonl "
            f"says: {AGAIN}"
        )
    return array


def _require_whole(array: NDArray[Any]) -> None:
    base: Any = array
    name = "a file of the store"
    while isinstance(base, np.ndarray):
        name = getattr(base, "filename", None) or name
        base = base.base
    if isinstance(base, mmap.mmap) and base.size() < len(base):
        raise StoreError(
            f"{name} was cut short while it was open: {base.size()} bytes are left; expected {len(base)}: {AGAIN}"
        )


def check_rows(rows: CandidateRows, info: StoreInfo) -> None:
    """Check shapes, and that every number is one in float16; raises `StoreError`, which names the candidate."""
    candidate = rows.candidate
    where = f"candidate {candidate.index} of problem {candidate.problem}"
    expected = (candidate.tokens, info.slices, info.width)
    shapes = (rows.states.shape, rows.statistics.shape, rows.positions.shape)
    if shapes != (expected, (candidate.tokens, len(STATISTICS)), (candidate.tokens,)):
        text = ", ".join(str(list(shape)) for shape in shapes)
        raise StoreError(
            f"{where} came with states, statistics and positions of the shapes {text}; "
            f"expected {list(expected)}, [m, {len(STATISTICS)}] and [m]"
        )
    if info.feature == "none":
        return
    largest = float(np.finfo(np.float16).max)
    for place in range(info.slices):
        part = rows.states[:, place]
        if bool((np.abs(part) <= largest).all()):
            continue
        if info.feature == "hidden":
            what, way_out = f"hidden state {info.layers[place]}", "leave this one out with --layers"
        else:
            what, way_out = "logits", "collect hidden states instead"
        raise StoreError(
            f"the {what} of {where} holds numbers that float16 does not (NaN, or beyond {largest:.0f}): {way_out}"
        )
    for column, name in enumerate(STATISTICS[:2]):
        if not bool(np.isfinite(rows.statistics[:, column]).all()):
            raise StoreError(
                f"the {name} of {where} is not finite: the model holds one of its tokens to be impossible; "
                "leave that text out"
            )


def _whole_problems(
    candidates: list[StoredCandidate], info: StoreInfo, problem: int, rows: int
) -> list[StoredCandidate]:
    """The candidates of those problems that are whole: all lines are there, and `rows` rows hold their tokens."""
    whole = 0
    for place, candidate in enumerate(candidates):
        rows -= candidate.tokens
        if rows < 0 or candidate.problem not in (problem, problem + 1):
            break
        if candidate.problem == problem + 1:
            # Only what comes next tells that a problem without a set number of candidates is whole.
            problem, whole = candidate.problem, place
        if info.n is not None and candidate.index == info.n - 1:
            whole = place + 1
    return candidates[:whole]
