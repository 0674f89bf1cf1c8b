"""What a head adds to the time of a pick: picks with the head and without it, in turn, in one run.

    python tests/bench/head_cost.py BUNDLE --data FILE [--head FILE] [--problems 20] [--rounds 5] [-n 8]

Both picks of a pair write the same tokens for the same prompt. Without the head the candidates are ranked by the mean
log-probability, which is computed in both; hidden states are not read, and the last token of a candidate, which only a
head wants, is not fed: the ratio is the whole price of a head. Which of the two comes first changes from pair to pair.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from swift_edge import Selection, Selector, __version__
from swift_edge.system.machine import default_threads
from swift_edge.training.collecting.problems import read_problems


def timed(
    selector: Selector, prompt: object, options: dict[str, object], signal: str | None
) -> tuple[float, Selection]:
    """Seconds of one pick, and the pick."""
    begun = time.perf_counter()
    selection = selector.pick(prompt, signal=signal, **options)
    return time.perf_counter() - begun, selection


def main() -> None:
    """Run the rounds and print the median ratio with its interval, and the command's own parameters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--head")
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    problems = read_problems(arguments.data, answers=False).first(arguments.problems).rows
    selector = Selector(arguments.bundle, head=arguments.head, threads=arguments.threads)
    options = {"n": arguments.n, "max_new_tokens": arguments.new, "seed": 0}
    if selector.pick(problems[0].prompt, **options).head is None:
        parser.error(f"{arguments.bundle} has no head; name one with --head")
    pairs: list[tuple[float, float]] = []
    scoring, tokens = [], 0
    for turn in range(arguments.rounds * len(problems)):
        prompt = problems[turn % len(problems)].prompt
        # In the next round the other one comes first for the same problem.
        signals = [None, "mean_logprob"] if (turn + turn // len(problems)) % 2 else ["mean_logprob", None]
        found = {signal: timed(selector, prompt, options, signal) for signal in signals}
        with_head, without = found[None][1], found["mean_logprob"][1]
        assert [each.token_ids for each in with_head.candidates] == [each.token_ids for each in without.candidates]
        pairs.append((found[None][0], found["mean_logprob"][0]))
        scoring.append(with_head.timings.head_s / with_head.timings.total_s)
        tokens += with_head.usage.completion_tokens
    ratios = np.array([on / off for on, off in pairs])
    draws = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    on, off = (sum(each[side] for each in pairs) for side in (0, 1))
    print(
        f"swift-edge {__version__}, {platform.machine()}, {arguments.threads or default_threads()} threads, {arguments}"
    )
    print(f"pairs of picks:      {len(pairs)}, {tokens / len(pairs):.0f} response tokens each")
    print(f"with / without head: median {np.median(ratios):.4f}, 95 % interval {low:.4f} to {high:.4f}")
    print(f"                     total {on:.2f} s / {off:.2f} s = {on / off:.4f}")
    print(f"gates and rewards:   median {statistics.median(scoring):.2%} of a pick's time")


if __name__ == "__main__":
    main()
