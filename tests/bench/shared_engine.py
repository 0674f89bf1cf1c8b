"""What sharing one engine comes to: threads, cancellation, memory and coroutines, each as a user would meet it.

    python tests/bench/shared_engine.py threads BUNDLE          # 16 threads x 20 picks beside one pick_many
    python tests/bench/shared_engine.py cancel BUNDLE           # from cancel() to the rows being free
    python tests/bench/shared_engine.py flood BUNDLE            # 10,000 requests, half of them cancelled
    python tests/bench/shared_engine.py coroutines BUNDLE       # 2,000 awaited handles, and the loop's slowest turn

Prints one JSON line with the figures and what they were measured on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from swift_edge import Selector, SwiftEdgeError
from swift_edge.evaluation.record import machine_facts, versions
from swift_edge.system.machine import process_memory

NAMES = ("Theo", "Odette", "Teresa", "Mia", "Tom", "Ana", "Ben", "Lena")


def question(number: int) -> str:
    """A question that no other number has."""
    first, second = NAMES[number % len(NAMES)], NAMES[(number + 3) % len(NAMES)]
    return (
        f"One day {first} owns {20 + number % 60} carrots. {first} has {2 + number % 7} carrots more than {second}. "
        f"What number of carrots does {second} have? ({number})"
    )


def threads(selector: Selector, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sixteen threads that pick twenty times each, in turn with one `pick_many` over the same prompts."""
    prompts = [question(number) for number in range(16 * 20)]
    options: dict[str, Any] = {"n": 8, "max_new_tokens": arguments.max_new_tokens}
    engine = selector.open().engine
    rounds: dict[str, list[float]] = {"threads": [], "pick_many": [], "one_by_one": []}
    steps: dict[str, int] = {}
    answers: dict[str, dict[str, list[Any]]] = {}

    def in_threads() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}

        def work(mine: list[str]) -> None:
            for prompt in mine:
                found[prompt] = [each.token_ids for each in selector.pick(prompt, **options).candidates]

        workers = [threading.Thread(target=work, args=(prompts[number::16],)) for number in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return found

    def in_one_call() -> dict[str, list[Any]]:
        return {
            prompts[picked.prompt_index]: [each.token_ids for each in picked.candidates]
            for picked in selector.pick_many(prompts, **options)
        }

    def one_by_one() -> dict[str, list[Any]]:
        return {prompt: [each.token_ids for each in selector.pick(prompt, **options).candidates] for prompt in prompts}

    ways: dict[str, Callable[[], dict[str, list[Any]]]] = {"threads": in_threads, "pick_many": in_one_call}
    if arguments.one_by_one:
        ways["one_by_one"] = one_by_one
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            before, begun = engine.steps, time.perf_counter()
            answers[name] = way()
            rounds[name].append(time.perf_counter() - begun)
            steps[name] = engine.steps - before
    assert all(found == answers["pick_many"] for found in answers.values())
    ratios = [one / other for one, other in zip(rounds["threads"], rounds["pick_many"], strict=True)]
    return {"seconds": rounds, "graph_steps": steps, "threads_by_pick_many": statistics.median(ratios)}


def cancel(selector: Selector, arguments: argparse.Namespace) -> dict[str, Any]:
    """From `cancel()` to the rows and the memory being free: while a long prompt is read, and while it is answered."""
    engine = selector.open().engine
    words = selector.bundle.manifest.architecture.vocab_size
    rng = np.random.default_rng(0)
    prompt = " ".join(f"w{word}" for word in rng.integers(10, words - 10, arguments.prompt_tokens))
    tokens = selector.token_count(prompt, raw=True)
    waited: dict[str, list[float]] = {"reading": [], "decoding": []}
    for number in range(arguments.rounds):
        for state in waited:
            handle = selector.submit(
                prompt, n=8, max_new_tokens=64, temperature=0.1, top_p=0.9, raw=True, seed=number, watched=False
            )
            watch = handle.ticket.watch
            while not (watch.decode_s if state == "decoding" else watch.prefill_s > 0.5):
                time.sleep(0.001)
            time.sleep(0.05 * (number + 1))
            begun = time.perf_counter()
            handle.cancel()
            try:
                handle.result()
            except SwiftEdgeError:
                waited[state].append(time.perf_counter() - begun)
            while not engine.is_idle:
                time.sleep(0.0005)
            assert engine.live_rows == 0
            assert engine.kv_nbytes == 0
    alone = selector.pick(prompt, n=8, max_new_tokens=16, temperature=0.1, top_p=0.9, raw=True)
    step_s = (alone.timings.decode_s + alone.timings.sample_s + alone.timings.head_s) / 16
    return {
        "prompt_tokens": tokens,
        "seconds": waited,
        "step_s": step_s,
        "chunk_s": alone.timings.prefill_s / -(-tokens // 128),
    }


def flood(selector: Selector, arguments: argparse.Namespace) -> dict[str, Any]:
    """Thousands of requests, of which every second one is cancelled at a random moment: what stays of them."""
    selector.open()
    rng = random.Random(0)
    done = cancelled = 0
    held = []
    for start in range(0, arguments.requests, 100):
        handles = [
            selector.submit(
                question(start + number),
                n=rng.choice((1, 2, 4, 8, "auto")),
                max_new_tokens=rng.choice((2, 8, 24)),
                seed=number,
                watched=rng.random() < 0.2,
            )
            for number in range(100)
        ]
        for handle in rng.sample(handles, 50):
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.004)
            handle.cancel()
        for handle in handles:
            try:
                handle.result(timeout=120)
                done += 1
            except SwiftEdgeError:
                cancelled += 1
        if (start + 100) % (arguments.requests // 10) == 0:
            held.append(round((process_memory("VmRSS") or 0) / 2**20, 1))
    engine = selector.engine
    idle, rows = engine.is_idle, engine.live_rows
    selector.close()
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return {
        "requests": arguments.requests,
        "done": done,
        "cancelled": cancelled,
        "resident_mib": held,
        "idle": idle,
        "rows": rows,
        "threads_left": left,
    }


def coroutines(selector: Selector, arguments: argparse.Namespace) -> dict[str, Any]:
    """Two thousand awaited picks, and how long the event loop was away at most."""
    selector.open()
    slowest = [0.0]

    async def watch() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0)
            slowest[0] = max(slowest[0], time.perf_counter() - begun)
            await asyncio.sleep(0.001)

    async def one(number: int) -> int:
        await asyncio.sleep(0)
        return (await selector.submit(question(number), n=4, max_new_tokens=16, watched=False)).usage.completion_tokens

    async def every() -> tuple[int, float, float]:
        watching = asyncio.create_task(watch())
        begun = time.perf_counter()
        tokens = sum(await asyncio.gather(*[one(number) for number in range(2000)]))
        took = time.perf_counter() - begun
        handle = selector.submit(question(0), n=8, max_new_tokens=400, temperature=1.5, watched=False)
        late = 0.0
        try:
            async with asyncio.timeout(0.05):
                await handle
        except TimeoutError:
            begun = time.perf_counter()
            while selector.engine.live_rows:
                await asyncio.sleep(0.0005)
            late = time.perf_counter() - begun
        watching.cancel()
        return tokens, took, late

    tokens, took, late = asyncio.run(every(), debug=False)
    return {"tokens": tokens, "seconds": took, "slowest_turn_s": slowest[0], "rows_free_after_timeout_s": late}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("threads", "cancel", "flood", "coroutines"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--one-by-one", action="store_true", help="time the same picks one after another, too")
    arguments = parser.parse_args()
    figures = globals()[arguments.what](Selector(arguments.bundle), arguments)
    print(json.dumps({"bundle": arguments.bundle.name, **figures, "machine": machine_facts(), "versions": versions()}))


if __name__ == "__main__":
    main()
