"""Whether a long-living process keeps its memory: picks of mixed shapes, some of them broken off, one after another.

    python tests/bench/soak.py BUNDLE [--picks 2000]

Prompts, candidates and lengths are drawn at random. Some picks are streamed and left in the middle, some fail on their
input, some share a batch, and two threads pick at once. Prints the memory after every tenth of the picks; what it grows
by in the second half is the leak, if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import platform
import random
import threading

from swift_edge import Selector, SwiftEdgeError, __version__
from swift_edge.system.machine import default_threads, process_memory

WORDS = ("once", "upon", "a", "time", "the", "dog", "saw", "his", "mom", "and", "said", "no", "to", "Lily", "in", "bed")


def pick_once(selector: Selector, rng: random.Random, number: int) -> None:
    """One pick of a random shape, in one of the ways in which an application picks."""
    prompt = " ".join(rng.choices(WORDS, k=rng.choice((1, 5, 20, 80))))
    options = {"n": rng.choice((1, 2, 3, 5, 8, 16)), "max_new_tokens": rng.choice((1, 7, 24, 60)), "seed": number}
    way = number % 10
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
    else:
        selector.pick(prompt, stop=[". "] if way == 5 else (), **options)


def main() -> None:
    """Pick, and print the memory now and then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--picks", type=int, default=2000)
    parser.add_argument("--prefix-cache", type=int, default=2**20, metavar="BYTES")
    arguments = parser.parse_args()
    print(f"swift-edge {__version__}, {platform.machine()}, {default_threads()} threads, {arguments}")
    selector, rng = Selector(arguments.bundle, prefix_cache_bytes=arguments.prefix_cache), random.Random(0)
    held = []
    for number in range(arguments.picks):
        pick_once(selector, rng, number)
        if (number + 1) % (arguments.picks // 10) == 0:
            held.append(process_memory("VmRSS") or 0)
            print(f"{number + 1:5} picks: {held[-1] / 2**20:.1f} MiB", flush=True)
    print(f"growth over the second half: {(held[-1] - held[4]) / 2**20:+.1f} MiB")


if __name__ == "__main__":
    main()
