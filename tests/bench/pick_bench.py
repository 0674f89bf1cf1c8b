"""One pick of N candidates beside N picks of one, in turn, in one run; and the memory it took beside the estimate.

    python tests/bench/pick_bench.py BUNDLE [--prompt 128] [--new 128] [-n 8] [--rounds 5]

For the bundle of `qwen_shape.py`, whose prompts are counted in words. A random head reads every hidden state of the
bundle, so that scoring is part of both. Random weights give flat logits; a temperature of 0.1 makes their entropy that
of a trained model, so that sampling costs what it costs in use.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from swift_edge import Selector, __version__
from swift_edge.benchmark import random_head
from swift_edge.bundle import read_manifest
from swift_edge.machine import default_threads, process_memory, reset_peak_memory


def main() -> None:
    """Run the rounds and print medians, the ratio per round, and the command's own parameters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.1)
    arguments = parser.parse_args()
    n = arguments.n
    words = np.random.default_rng(0).integers(0, 100_000, (arguments.rounds + 1, arguments.prompt))
    prompts = [" ".join(f"w{word}" for word in row) for row in words]
    options = {"max_new_tokens": arguments.new, "temperature": arguments.temperature, "top_p": 0.9}
    selector = Selector(arguments.bundle, head=random_head(read_manifest(Path(arguments.bundle))))
    selector.pick(prompts[-1], n=2, max_new_tokens=2)
    before = reset_peak_memory() or 0
    together, apart, last = [], [], None
    for prompt in prompts[:-1]:
        begun = time.perf_counter()
        last = selector.pick(prompt, n=n, seed=1, **options)
        together.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for seed in range(n):
            selector.pick(prompt, n=1, seed=seed, **options)
        apart.append(time.perf_counter() - begun)
    assert last is not None
    peak = process_memory("VmHWM") or 0
    ratios = [slow / fast for slow, fast in zip(apart, together, strict=True)]
    timings = last.to_dict()["timings"]
    print(f"swift-edge {__version__}, {platform.machine()}, {default_threads()} threads, {arguments}")
    print(f"one pick of {n}:    median {statistics.median(together):6.2f} s")
    print(f"{n} picks of one:  median {statistics.median(apart):6.2f} s")
    print(f"ratio:            median {statistics.median(ratios):6.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"tokens: {last.usage}; timings of the last pick of {n}: {json.dumps(timings)}")
    session = selector._open().session
    estimate = sum(session.request_bytes(n, arguments.prompt, arguments.new, layers=len(session.layers)))
    print(
        f"memory: {(peak - before) / 2**20:.0f} MiB above the opened bundle at the peak, estimated {estimate >> 20} MiB"
    )


if __name__ == "__main__":
    main()
