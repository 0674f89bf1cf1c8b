"""Cores, memory and disk that this process may use, read from made-up /proc and /sys/fs/cgroup trees."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swift_edge import Selector
from swift_edge.errors import DiskSpaceError, MemoryLimitError, SwiftEdgeError
from swift_edge.scoring import load_head
from swift_edge.system import machine
from swift_edge.system.panics import quiet_panics

MODELS = Path(__file__).parents[2] / "models"
STORIES = MODELS / "stories260k"
MEMINFO = "MemTotal:       8000000 kB\nMemFree:        1000 kB\nMemAvailable:    4000 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


VERSION_2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "proc/meminfo": MEMINFO,
    "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
    "sys/fs/cgroup/outer/memory.max": "3000000\n",
    "sys/fs/cgroup/outer/memory.current": "2000000\n",
    "sys/fs/cgroup/outer/memory.stat": "anon 1500000\ninactive_file 500000\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "1000\n",
}

VERSION_1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
    "proc/meminfo": MEMINFO,
    # The group's name is the host's; in the container only the mounted top is there.
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1900000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 0\ntotal_inactive_file 400000\n",
}


def test_version_2_takes_the_least_along_the_parents(tmp_path: Path) -> None:
    root = tree(tmp_path, VERSION_2)
    assert machine.cpu_quota(root) == 1.5
    assert machine.default_threads(root) == 1
    assert machine.available_memory(root) == 3_000_000 - (2_000_000 - 500_000)


def test_version_1_works_inside_a_container(tmp_path: Path) -> None:
    root = tree(tmp_path, VERSION_1)
    assert machine.cpu_quota(root) == 0.5
    assert machine.default_threads(root) == 1
    assert machine.available_memory(root) == 2_000_000 - (1_900_000 - 400_000)


def test_separate_controllers_and_no_quota_are_no_limit(tmp_path: Path) -> None:
    unlimited = {
        "proc/self/cgroup": "2:cpu:/\n1:memory:/\n0::/\n",
        "proc/meminfo": MEMINFO,
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    }
    root = tree(tmp_path, unlimited)
    assert machine.cpu_quota(root) is None
    assert machine.available_memory(root) == 4000 * 1024


def test_without_any_of_the_files_cores_decide_and_memory_is_unknown(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    assert machine.available_memory(tmp_path) is None
    assert 1 <= machine.default_threads(tmp_path) <= (os.cpu_count() or 1)
    machine.require_memory(2**60, "anything", root=tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_affinity_limits_threads(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert machine.default_threads(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.default_threads(tmp_path) == len(before)


def test_too_much_memory_is_refused_with_both_numbers(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": MEMINFO})
    machine.require_memory(4000 * 1024, "the KV cache", root=root)
    with pytest.raises(MemoryLimitError, match=r"the KV cache needs 3\.00 GiB .* 3\.9 MiB are free; lower n") as caught:
        machine.require_memory(3 * 2**30, "the KV cache", "lower n", root=root)
    assert isinstance(caught.value, MemoryError)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.needed, again.available) == (str(caught.value), 3 * 2**30, 4000 * 1024)


def test_too_much_disk_is_refused_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    machine.require_disk(tmp_path / "a" / "b", 1, "the export")
    with pytest.raises(DiskSpaceError, match=r"the export needs .* GiB on the disk of .*/a/b, .* are free"):
        machine.require_disk(tmp_path / "a" / "b", 2**60, "the export")


def test_what_others_write_to_stderr_meanwhile_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_panics():
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


OPENING = """
import resource, sys
import jinja2, numpy.random, onnxruntime, tokenizers
import swift_edge.bundle.template, swift_edge.selector
from swift_edge import Selector

selector = Selector(sys.argv[1], threads=2)
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    selector.pick("Once", n=2, max_new_tokens=2)
    print("picked")
except BaseException as error:
    print(f"{type(error).__module__}.{type(error).__name__}: {error}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
@pytest.mark.parametrize("free", [1, 20, 40])
def test_memory_that_ends_while_a_bundle_is_opened_is_an_error_of_ours(free: int) -> None:
    """Of a thread's stack, of Python's, and of onnxruntime's, which tells of it in the words of a damaged graph."""
    command = [sys.executable, "-c", OPENING, str(STORIES), str(free)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ended.returncode < 0:
        pytest.skip("C++ or Rust ended the process, which nobody can keep it from")
    says = "swift_edge.errors.MemoryLimitError: opening "
    assert ended.stdout.startswith(says) or (free > 1 and ended.stdout == "picked\n"), ended.stdout + ended.stderr


THREADLESS = """
import resource, sys, threading
from swift_edge import Selector, SwiftEdgeError

selector = Selector(sys.argv[1], threads=1).open()
selector.token_count("Once")
threading.stack_size(2**27)  # more than the stacks that are kept of threads that have ended
before = resource.getrlimit(resource.RLIMIT_AS)
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
try:
    selector.pick("Once", n=2, max_new_tokens=2)
except SwiftEdgeError as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, before)
threading.stack_size(0)
print(len(selector.pick("Once", n=2, max_new_tokens=2).candidates), selector.engine.is_idle)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
def test_a_pick_for_which_no_thread_can_be_started_fails_alone() -> None:
    """The next one starts the thread; it waited for ever for the one that was not there."""
    command = [sys.executable, "-c", THREADLESS, str(STORIES)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "MemoryLimitError\n2 True\n", ended.stdout + ended.stderr


def on_a_full_stack(call: Callable[[], object], left: int) -> object:
    """Call with so many more functions in one another as Python still allows."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1

    def deeper(more: int) -> object:
        return deeper(more - 1) if more else call()

    return deeper(sys.getrecursionlimit() - depth - left)


def test_a_stack_that_is_full_is_an_error_of_ours() -> None:
    with Selector(STORIES, threads=1) as selector:
        calls: dict[str, Callable[[], object]] = {
            "opening the bundle": lambda: Selector(STORIES, threads=1).open(),
            "reading the answers": lambda: selector.score("Once", ["upon a time"], raw=True),
            "reading the head": lambda: load_head(MODELS / "small-steps" / "head.npz"),
            "the pick": lambda: selector.pick("Once", n=2, max_new_tokens=48, raw=True),
        }
        for call in calls.values():  # what is imported and compiled at the first call takes frames of its own
            call()
        for what, call in calls.items():
            ours = f"{what} needs"
            for _ in range(
                40
            ):  # a thread that is there, or done, before it is waited for takes fewer frames of its caller
                refusals = [refusal(call, left) for left in range(4, 60)]
                assert not refusals[-1]
                if any(ours in each and "Python's stack is full" in each for each in refusals):
                    break
            else:
                pytest.fail(f"{what}: {refusals}")


def refusal(call: Callable[[], object], left: int) -> str:
    try:
        on_a_full_stack(call, left)
    except (SwiftEdgeError, RecursionError) as error:  # the latter where not even the call itself has room
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (MemoryError(), MemoryLimitError),
        (OSError(12, "Cannot allocate memory"), MemoryLimitError),
        (RuntimeError("can't start new thread"), MemoryLimitError),
        (ImportError("x.so: failed to map segment from shared object"), MemoryLimitError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MemoryLimitError),
        (MemoryLimitError("it", 5, 4, "free some"), MemoryLimitError),
        (OSError(2, "No such file or directory", "/out of memory"), OSError),
        (RuntimeError("x"), RuntimeError),
        (KeyError("out of memory"), KeyError),
    ],
)
def test_only_a_lack_of_memory_is_told_as_one(error: Exception, becomes: type[Exception]) -> None:
    with pytest.raises(becomes) as caught, machine.memory_for("it"):
        raise error
    assert isinstance(caught.value, SwiftEdgeError) == (becomes is MemoryLimitError)
    assert (caught.value is error) == (becomes is not MemoryLimitError or isinstance(error, MemoryLimitError))
