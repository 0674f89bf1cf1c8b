"""The corpus: problems of four families, each split new to the other, and responses by solvers of different care.

    python models/recipe/corpus.py test.jsonl --split test --problems 2400 --seed 1
    python models/recipe/corpus.py train.jsonl --split train --problems 4000 --seed 2

writes problems with their answers, as `swift-edge collect` and `swift-edge eval` read them. Training the model takes
its documents from `documents`, which adds the responses of a few solvers to every problem.
"""

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import click
from choices import CHOICES
from coin_flips import coin_flip
from programs import PROGRAMS
from solvers import Impossible, Problem, draw_care, response, results, right_answer
from word_problems import WORD_PROBLEMS
from words import Draw, Split

RESPONSES = 4
"""Responses to a problem in a document."""
FAMILIES = (WORD_PROBLEMS, (coin_flip,), PROGRAMS, CHOICES)
"""The kinds of every task family; a family is drawn first, so that all four are equally frequent."""


def draw_problem(rng: random.Random, split: Split) -> Problem:
    """Draw a problem of a split, one whose misconception leads to another answer than the right one."""
    kind = rng.choice(rng.choice(FAMILIES))
    while True:
        draw = Draw(rng, split)
        try:
            problem = kind(draw)
            ways = [results(problem, care, rng)[-1] for care in ("careful", "mistaken")]
        except Impossible:
            continue
        fits = draw.is_new() if split == "test" else draw.is_old()
        if fits and ways[0] != ways[1]:
            return problem


def documents(seed: int, start: int, count: int, *, careful: bool = False) -> Iterator[tuple[Problem, list[str]]]:
    """Training problems number `start` to `start + count` with responses of a few solvers; the same for a seed.

    `careful` gives other problems, each with the response of one careful solver: several would be one and the same.
    """
    for number in range(start, start + count):
        rng = random.Random(f"{seed} careful {number}" if careful else f"{seed} {number}")
        problem = draw_problem(rng, "train")
        written: list[str] = []
        while len(written) < (1 if careful else RESPONSES):
            with contextlib.suppress(Impossible):  # a slip led out of the range of numbers
                care = "careful" if careful else draw_care(problem.shares, rng)
                written.append(response(problem, care, rng))
        yield problem, written


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["train", "test"]), required=True)
@click.option("--problems", type=int, required=True, help="How many different problems to write.")
@click.option("--seed", type=int, required=True)
def main(out: Path, split: Split, problems: int, seed: int) -> None:
    """Write problems with their answers, one a line."""
    rng = random.Random(f"{split} {seed}")
    written: dict[str, Problem] = {}
    while len(written) < problems:
        problem = draw_problem(rng, split)
        written.setdefault(problem.question, problem)
    with open(out, "w", encoding="utf-8") as file:
        for problem in written.values():
            row = {
                "question": problem.question,
                "answer": right_answer(problem),
                "family": problem.family,
                "kind": problem.kind,
            }
            file.write(json.dumps(row) + "\n")
    click.echo(f"{len(written)} problems written to {out}", err=True)


if __name__ == "__main__":
    main()
