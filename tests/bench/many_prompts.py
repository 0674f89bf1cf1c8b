"""What one batch over many prompts gains: all prompts in one batch, and prompt by prompt, in turn, in one run.

    python tests/bench/many_prompts.py BUNDLE --data FILE [--prompts 64] [-n 4] [--new 512] [--rounds 7] [--drawn]
    python tests/bench/many_prompts.py BUNDLE --prompt-tokens 128 [--temperature 0.1 --top-p 0.9] ...

Both write the same candidates, as `pick_many` and as `pick` do, from token ids on. An EOS ends them where the model
says so. Models of random weights never do, and others may write candidates of much the same length: with `--drawn` the
lengths are drawn, log-normal around a third of `--new`, which cuts off the longest, and no other token ends a
candidate. Prompts are those of FILE, or random tokens. Which of the two comes first changes from round to round.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from given_lengths import begin_of_lengths

from swift_edge import Selection, __version__
from swift_edge.arrays import Ids
from swift_edge.evaluation.benchmark import Shape, median_with_interval, planned_shape, random_head
from swift_edge.handle import Handle, begin
from swift_edge.selection.planning import PlannedPick, Planner
from swift_edge.system.machine import default_threads
from swift_edge.training.collecting.problems import read_problems

SHORTEST, MEDIAN_SHARE, SPREAD = 8, 1 / 3, 0.6
"""Drawn lengths, as in `peers/compare.py`: least tokens, median as a share of the most, deviation of the logarithm."""


def drawn_lengths(prompt: Ids, n: int, longest: int) -> list[int]:
    """The lengths of a prompt's candidates."""
    lengths = []
    for index in range(n):
        draws = np.random.default_rng([index, *prompt.tolist()])
        length = round(draws.lognormal(np.log(longest * MEDIAN_SHARE), SPREAD))
        lengths.append(int(np.clip(length, min(SHORTEST, longest), longest)))
    return lengths


def begun(planned: PlannedPick, prompt: Ids, *, drawn: bool, key: object = None) -> Handle:
    """Submit the pick of a prompt."""
    if not drawn:
        return begin(planned, prompt, watched=False, started=time.perf_counter(), key=key)
    lengths = drawn_lengths(prompt, planned.plan.most, planned.options.max_new_tokens)
    return begin_of_lengths(planned, prompt, lengths, key=key)


def timed(
    planned: PlannedPick, prompts: Sequence[Ids], *, together: bool, drawn: bool
) -> tuple[float, list[Selection]]:
    """Seconds that all picks take, and the picks in the order of the prompts."""
    started = time.perf_counter()
    if together:
        key = object()
        handles = [begun(planned, prompt, drawn=drawn, key=key) for prompt in prompts]
        selections = [handle.result() for handle in handles]
    else:
        selections = [begun(planned, prompt, drawn=drawn).result() for prompt in prompts]
    return time.perf_counter() - started, selections


def main() -> None:
    """Run the rounds and print the median ratio with its interval, and the command's own parameters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path)
    source.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--drawn", action="store_true")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("-n", type=int, default=4)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    planner = Planner.open(arguments.bundle, threads=arguments.threads)
    model, manifest = planner.model, planner.model.bundle.manifest
    if planner.head is None and manifest.hidden_states.indices:
        planner = dataclasses.replace(planner, head=random_head(manifest), head_name=None)
    if arguments.data is not None:
        problems = read_problems(arguments.data, answers=False).first(arguments.prompts).rows
        prompts = [model.prompt_ids(each.prompt, raw=False, feeds_last=True) for each in problems]
    else:
        draws = np.random.default_rng(0)
        vocabulary = manifest.architecture.vocab_size
        prompts = [draws.integers(0, vocabulary, arguments.prompt_tokens) for _ in range(arguments.prompts)]
    room = manifest.architecture.context_length - max(map(len, prompts))
    shape = Shape(arguments.n, max(map(len, prompts)), min(arguments.new, room))
    filters = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    planned = planned_shape(planner, shape, **{name: value for name, value in filters.items() if value is not None})
    if not arguments.drawn:
        planned = dataclasses.replace(planned, stop_ids=frozenset(manifest.tokens.eos_ids))
    ratios, together_s, tokens = [], [], 0
    for number in range(arguments.rounds + 1):
        order = [True, False] if number % 2 else [False, True]
        found = {together: timed(planned, prompts, together=together, drawn=arguments.drawn) for together in order}
        for one, other in zip(found[True][1], found[False][1], strict=True):
            assert [each.token_ids for each in one.candidates] == [each.token_ids for each in other.candidates]
            assert [each.score for each in one.candidates] == [each.score for each in other.candidates]
        if number:  # the first round warms up
            ratios.append(found[False][0] / found[True][0])
            together_s.append(found[True][0])
        tokens = sum(selection.usage.completion_tokens for selection in found[True][1])
    ratio, seconds = median_with_interval(ratios), median_with_interval(together_s)
    lengths = [len(each.token_ids) for selection in found[True][1] for each in selection.candidates]
    print(
        f"swift-edge {__version__}, {platform.machine()}, {arguments.threads or default_threads()} threads, {arguments}"
    )
    print(f"candidates:                {len(lengths)} of {min(lengths)} to {max(lengths)} tokens, {tokens} in all")
    print(f"one batch:                 median {seconds['median']:.2f} s, {tokens / seconds['median']:.0f} tokens/s")
    print(
        f"prompt by prompt takes:    median {ratio['median']:.3f} times as long, "
        f"95 % interval {ratio['low']:.3f} to {ratio['high']:.3f}"
    )


if __name__ == "__main__":
    main()
