"""Whether a long-living process keeps what it holds: memory, threads, open files, and files for the moment.

    python tests/bench/soak.py BUNDLE [--picks 2000 | --seconds 600] [--at-once 3]

Prompts, candidates and lengths are drawn at random, and several threads are at it at once. Some picks are streamed and
left in the middle, some are cancelled or awaited, some fail on their input or in a judge of the user's, some share a
batch; stores are collected, gone on with and read beside them. Prints what the process holds after every tenth; what
grows in the second half is the leak, if there is one, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from swift_edge import Selector, SwiftEdgeError, __version__
from swift_edge.system.machine import default_threads, process_memory
from swift_edge.training import Store, collect

WORDS = ("once", "upon", "a", "time", "the", "dog", "saw", "his", "mom", "and", "said", "no", "to", "Lily", "in", "bed")
MOST_GROWTH = 24 * 2**20
"""Bytes by which memory may grow in the second half: an allocator's arenas settle late."""
MOST_MORE = 8
"""Threads, open files and files for the moment of which there may be more."""


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    memory: int
    threads: int
    files: int
    temporary: int

    @classmethod
    def now(cls, folder: Path) -> Held:
        """Ask the system; `folder` is where temporary files go."""
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        temporary = sum(len(files) for _, _, files in os.walk(folder))
        return cls(process_memory("VmRSS") or 0, threading.active_count(), descriptors, temporary)

    def __str__(self) -> str:
        """One line."""
        memory = f"{self.memory / 2**20:.1f} MiB"
        return f"{memory}, {self.threads} threads, {self.files} open files, {self.temporary} temporary files"


def pick_once(selector: Selector, number: int, folder: Path) -> None:
    """One pick of a random shape, in one of the ways in which an application picks."""
    rng = random.Random(number)
    prompt = " ".join(rng.choices(WORDS, k=rng.choice((1, 5, 20, 80))))
    options = {"n": rng.choice((1, 2, 3, 5, 8, 16)), "max_new_tokens": rng.choice((1, 7, 24, 60)), "seed": number}
    way = number % 14
    if way == 0:
        for _ in itertools.islice(selector.stream(prompt, **options), rng.randrange(1, 12)):
            pass
    elif way == 1:
        with contextlib.suppress(SwiftEdgeError):
            selector.pick(prompt * 100, **options)
    elif way == 2:
        for _ in selector.pick_many([prompt, "One day", prompt[::-1]], **options):
            pass
    elif way == 3:
        selector.score(prompt, ["a dog", "the red ball was his"])
    elif way == 4:
        threads = [threading.Thread(target=selector.pick, args=(prompt,), kwargs=options) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif way == 5:
        asyncio.run(_await(selector, prompt, options))
    elif way == 6:
        handle = selector.submit(prompt, **options)
        time.sleep(rng.uniform(0, 0.02))
        handle.cancel()
        with contextlib.suppress(SwiftEdgeError):
            handle.result()
    elif way == 7:
        with contextlib.suppress(SwiftEdgeError, ZeroDivisionError):
            selector.pick(prompt, **options | {"n": 2}, external=lambda _: 1 / 0)
    elif way == 8:
        with contextlib.suppress(SwiftEdgeError):
            selector.pick([{"role": "nobody", "content": prompt}], **options)
    elif way == 9:
        _collect(selector, folder, number)
    else:
        selector.pick(prompt, stop=[". "] if way == 10 else (), **options)


async def _await(selector: Selector, prompt: str, options: dict[str, int]) -> None:
    """Await a pick, and leave another one that is under way."""
    awaited, left = selector.submit(prompt, **options), selector.submit(prompt, **options)
    await awaited
    with contextlib.suppress(asyncio.TimeoutError, SwiftEdgeError):
        await asyncio.wait_for(_events(left), 0.01)


async def _events(handle) -> None:  # type: ignore[no-untyped-def]
    async for _ in handle:
        pass


def _collect(selector: Selector, folder: Path, number: int) -> None:
    """Collect a store, which the second time is complete already, read it, and delete it."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        data, out = Path(place) / "problems.jsonl", Path(place) / "store"
        data.write_text('{"prompt": "Once upon a time"}\n{"prompt": "One day"}\n', encoding="utf-8")
        for _ in range(2):
            grader = lambda _, text: "the" in text  # noqa: E731
            collect(selector.bundle.path, data, out, grader=grader, n=2, max_new_tokens=8, seed=number, threads=1)
        store = Store.open(out)
        assert store.complete
        assert store.shards[0].states.shape[0] == store.candidates[-1].tokens + store.shards[0].starts[-2]


def grown(held: Sequence[Held]) -> list[str]:
    """What there is more of at the end than in the middle, by more than settles."""
    middle, end = held[len(held) // 2 - 1], held[-1]
    found = []
    if end.memory - middle.memory > MOST_GROWTH:
        found.append(f"memory by {(end.memory - middle.memory) / 2**20:.1f} MiB")
    for name in ("threads", "files", "temporary"):
        more = getattr(end, name) - getattr(middle, name)
        if more > MOST_MORE:
            found.append(f"{name} by {more}")
    return found


def main() -> None:
    """Pick, and print what is held now and then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--picks", type=int, default=2000)
    parser.add_argument("--seconds", type=float, help="pick for so long instead")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="threads that pick")
    parser.add_argument("--prefix-cache", type=int, default=2**20, metavar="BYTES")
    arguments = parser.parse_args()
    print(f"swift-edge {__version__}, {platform.machine()}, {default_threads()} threads, {arguments}")
    selector = Selector(arguments.bundle, prefix_cache_bytes=arguments.prefix_cache)
    numbers, held, done = itertools.count(), [], 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(arguments.at_once) as threads:
        folder = Path(place)
        tempfile.tempdir = place  # what anything leaves behind is counted
        for part in range(1, 11):
            while (
                done < arguments.picks * part // 10
                if arguments.seconds is None
                else time.monotonic() - began < arguments.seconds * part / 10
            ):
                batch = list(itertools.islice(numbers, 4 * arguments.at_once))
                list(threads.map(lambda number: pick_once(selector, number, folder), batch))
                done += len(batch)
            held.append(Held.now(folder))
            print(f"{done:6} picks: {held[-1]}", flush=True)
        tempfile.tempdir = None
    print(f"growth over the second half: {(held[-1].memory - held[4].memory) / 2**20:+.1f} MiB")
    if found := grown(held):
        sys.exit(f"grown in the second half: {', '.join(found)}")


if __name__ == "__main__":
    main()
