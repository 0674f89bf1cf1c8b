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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from swift_edge import Selection, __version__
from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel
from swift_edge.engine.rows import DecodeLoop, Prefilled
from swift_edge.engine.signals import TokenStatistics
from swift_edge.evaluation.benchmark import Shape, median_with_interval, random_head, work_of
from swift_edge.results import Picked
from swift_edge.selection import pick as picking
from swift_edge.selection.pick import Request, Work, pick_each
from swift_edge.system.machine import default_threads
from swift_edge.training.collecting.problems import read_problems

SHORTEST, MEDIAN_SHARE, SPREAD = 8, 1 / 3, 0.6
"""Drawn lengths, as in `peers/compare.py`: least tokens, median as a share of the most, deviation of the logarithm."""


class DrawnLengths(DecodeLoop):
    """Ends every candidate at a length that is drawn for its prompt and index, and at no other."""

    def admit(self, prompt: Prefilled, candidates: Mapping[int, int], seed: int) -> None:
        """Draw their lengths."""
        super().admit(prompt, candidates, seed)
        for row in self._rows[-len(candidates) :]:
            draws = np.random.default_rng([candidates[row.candidate], *prompt.token_ids.tolist()])
            drawn = draws.lognormal(np.log(self._max_new_tokens * MEDIAN_SHARE), SPREAD)
            row.length = int(np.clip(round(drawn), SHORTEST, self._max_new_tokens))

    def _sample(self) -> tuple[Ids, TokenStatistics]:
        token_ids, statistics = super()._sample()
        end = min(self._eos_ids)
        token_ids[np.isin(token_ids, list(self._eos_ids))] = 0 if end else max(self._eos_ids) + 1
        token_ids[[row.num_new + 1 >= row.length for row in self._rows]] = end
        return token_ids, statistics


def picked(work: Work, prompts: Sequence[Ids]) -> dict[int, Selection]:
    """Pick for all prompts in one batch; the selections by number."""
    requests: Iterator[Request] = (Request.of_ids(work, prompt, time.perf_counter(), 0.0) for prompt in prompts)
    events = pick_each(work, requests, watched=False)
    return {number: event.selection for number, event in events if isinstance(event, Picked)}


def timed(work: Work, prompts: Sequence[Ids], *, together: bool) -> tuple[float, list[Selection]]:
    """Seconds that all picks take, and the picks in the order of the prompts."""
    begun = time.perf_counter()
    if together:
        found = picked(work, prompts)
        selections = [found[number] for number in range(len(prompts))]
    else:
        selections = [picked(work, [prompt])[0] for prompt in prompts]
    return time.perf_counter() - begun, selections


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
    opened = OpenedModel.open(arguments.bundle, None, None, arguments.threads)
    manifest = opened.bundle.manifest
    if opened.head is None and manifest.hidden_states.indices:
        opened = dataclasses.replace(opened, head=random_head(manifest), head_name=None)
    if arguments.data is not None:
        problems = read_problems(arguments.data, answers=False).first(arguments.prompts).rows
        prompts = [opened.prompt_ids(each.prompt, raw=False, feeds_last=True) for each in problems]
    else:
        draws = np.random.default_rng(0)
        vocabulary = manifest.architecture.vocab_size
        prompts = [draws.integers(0, vocabulary, arguments.prompt_tokens) for _ in range(arguments.prompts)]
    room = manifest.architecture.context_length - max(map(len, prompts))
    shape = Shape(arguments.n, max(map(len, prompts)), min(arguments.new, room))
    work = work_of(opened, arguments.bundle, shape, temperature=arguments.temperature, top_p=arguments.top_p)
    work = dataclasses.replace(work, eos_ids=manifest.tokens.eos_ids)
    if arguments.drawn:
        picking.DecodeLoop = DrawnLengths
    ratios, together_s, tokens = [], [], 0
    for number in range(arguments.rounds + 1):
        order = [True, False] if number % 2 else [False, True]
        found = {together: timed(work, prompts, together=together) for together in order}
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
