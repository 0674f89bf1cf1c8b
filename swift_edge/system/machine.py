"""What this process may use of the machine: cores, memory, disk; and errors before more is taken than there is."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swift_edge.errors import DiskSpaceError, MemoryLimitError, SwiftEdgeError, out_of_memory

LESS_MEMORY: Final = "free some memory or ask for less"
"""The way out for any work that there is not enough memory for."""

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors with which the system says that a disk, or a user's share of it, is full."""

_ROOT = Path("/")

_NO_MEMORY: Final = re.compile(
    r"out of memory|bad_alloc|alloc_failed|(fail(ed|s)? to|can(no|')t) allocate|failed to map segment"
    r"|pthread_create failed|can't start new thread",
    re.IGNORECASE,
)
"""What is said where the system gives no memory, none for the stack of another thread, or allows no more threads."""


def default_threads(root: Path = _ROOT) -> int:
    """Threads that can run at once: the least of cores, CPU affinity and control group quota, at least 1.

    `root` stands for `/` when `/proc` and `/sys/fs/cgroup` are read. A quota of 2.5 cores counts as 2: a third thread
    would be stopped for half of each period, and the others wait for it.
    """
    # Linux alone knows the affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Cores that the control group grants, the least along its parents; `None` without a limit."""
    quotas = []
    for folder in _group_folders(root, "cpu"):
        maximum = _words(folder / "cpu.max")  # version 2: "max 100000" or "150000 100000"
        quota = _number(maximum[:1]) if maximum else _number(_words(folder / "cpu.cfs_quota_us"))
        period = _number(maximum[1:2]) if maximum else _number(_words(folder / "cpu.cfs_period_us"))
        if quota is not None and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes free without swapping: the least of the machine's and the control groups'; `None` where it is unknown."""
    free = [_memory_of_machine(root)]
    for folder in _group_folders(root, "memory"):
        limit = _number(_words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes"))
        used = _number(_words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes"))
        if limit is not None and used is not None:
            free.append(max(0, limit - max(0, used - _reclaimable(folder))))
    return min((size for size in free if size is not None), default=None)


def process_memory(field: str, root: Path = _ROOT) -> int | None:
    """Bytes of this process, `VmRSS` for now and `VmHWM` for the peak; `None` where the system does not tell."""
    kibibytes = next((line.split()[1:2] for line in _lines(root / "proc/self/status") if line.startswith(field)), [])
    value = _number(kibibytes)
    return None if value is None else value * 1024


def reset_peak_memory() -> int | None:
    """Let the peak of this process's memory start again from what it holds now; gives that, or `None` as above."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return process_memory("VmRSS")


def require_memory(needed: int, what: str, way_out: str = LESS_MEMORY, root: Path = _ROOT) -> None:
    """Raise `MemoryLimitError` if `needed` bytes for `what` are more than there are; silent where that is unknown."""
    require_available(needed, available_memory(root), what, way_out)


def require_available(needed: int, available: int | None, what: str, way_out: str) -> None:
    """Do the same with what `available_memory` found: it takes about as long as a decode step of a small model."""
    if available is not None and needed > available:
        raise MemoryLimitError(what, needed, available, way_out)


@contextlib.contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turn what Python raises where memory, threads or its stack run out into the `MemoryLimitError` of `what`.

    Stands before a function as well, as in `@memory_for("reading the prompt")`: what is called by others is a door, and
    the errors that leave it are those of this package.
    """
    try:
        yield
    except RecursionError as error:
        raise out_of_memory(what, "Python's stack is full: call it from fewer functions in one another") from error
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if isinstance(error, OSError):
            ran_out = error.errno == errno.ENOMEM
        else:
            ran_out = isinstance(error, MemoryError) or tells_of_memory(str(error))
        if isinstance(error, SwiftEdgeError) or not ran_out:
            raise
        raise out_of_memory(what, LESS_MEMORY) from error


def tells_of_memory(reason: str) -> bool:
    """Whether a library that has no kind of error for it says that memory, or threads, ran out."""
    return _NO_MEMORY.search(reason) is not None


def require_disk(path: str | os.PathLike[str], needed: int, what: str) -> None:
    """Raise `DiskSpaceError` if `needed` bytes for `what` do not fit on the disk of `path`, existing or not."""
    folder = Path(path).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskSpaceError(what, Path(path), needed, free)


def _memory_of_machine(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            kibibytes = _number(line.split()[1:2])
            return None if kibibytes is None else kibibytes * 1024
    return None


def _reclaimable(folder: Path) -> int:
    # Pages of files that were read count as used, but the kernel gives them up when asked. Version 1 counts a group's
    # own pages as "inactive_file" and those of its children too as "total_inactive_file".
    statistics = dict(line.split(maxsplit=1) for line in _lines(folder / "memory.stat") if " " in line)
    text = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
    return _number([text]) or 0


def _group_folders(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and its parents for one controller, both versions, as far as visible."""
    mounted = root / "sys/fs/cgroup"
    folders = []
    for line in _lines(root / "proc/self/cgroup"):  # "0::/a/b" for version 2, "4:cpu,cpuacct:/a/b" for version 1
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            top = mounted
        elif controller in controllers.split(","):
            # A combined controller is mounted under its whole name, with a link for each part.
            top = mounted / controllers if (mounted / controllers).is_dir() else mounted / controller
        else:
            continue
        # In a container the group's name may be the host's and lead nowhere; the mounted top is then its own group.
        parts = [part for part in group.split("/") if part not in ("", "..")]
        folders += [top.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(words: list[str]) -> int | None:
    """The first word as a number; `None` for "max", for -1 and for nothing, all of which mean no limit."""
    return int(words[0]) if words and words[0].isdigit() else None
