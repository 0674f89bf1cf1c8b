"""The corpus: problems of four families, each split new to the other, and responses by solvers of different care.

    python models/recipe/corpus.py test.jsonl --split test --problems 2400 --seed 1
    python models/recipe/corpus.py train.jsonl --split train --problems 4000 --seed 2

writes problems with their answers, as `swift-edge collect` and `swift-edge eval` read them. Training the model takes
its documents from `documents`, which adds the responses of a few solvers to every problem.
"""

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from choices import CHOICES
from coin_flips import coin_flip
from programs import PROGRAMS
from solvers import (
    CAREFUL,
    JUDGED,
    Care,
    Impossible,
    Problem,
    Shares,
    between,
    draw_care,
    response,
    results,
    right_answer,
)
from word_problems import WORD_PROBLEMS
from words import Draw, Split

RESPONSES = 2
"""Responses to a problem in a document, beside the one to be judged."""
VOICES: tuple[Care, ...] = ("careful", "mistaken", "contrary")
"""The solvers that never slip."""
Kind = Callable[[Draw], Problem]
FAMILIES: tuple[tuple[Kind, ...], ...] = (WORD_PROBLEMS, (coin_flip,), PROGRAMS, CHOICES)
"""The kinds of every task family; a family is drawn first, so that all four are equally frequent."""


def draw_problem(rng: random.Random, split: Split, family: Sequence[Kind] | None = None) -> Problem:
    """Draw a problem of a split, of any family or of some kinds; its misconceptions lead to wrong answers."""
    kind = rng.choice(family or rng.choice(FAMILIES))
    while True:
        draw = Draw(rng, split)
        try:
            problem = kind(draw)
            right, mistaken, contrary = (results(problem, care, rng)[-1] for care in VOICES)
        except Impossible:
            continue
        fits = draw.is_new() if split == "test" else draw.is_old()
        # Of two states, one misconception may end in the right one.
        leads_astray = right not in (mistaken, contrary) or (problem.states and mistaken != contrary)
        if fits and leads_astray:
            return problem


@dataclass(frozen=True, slots=True)
class Document:
    """A problem, responses to be learned, and one to be judged."""

    problem: Problem
    """What is asked."""
    responses: tuple[str, ...]
    """Steps and answers of some solvers."""
    judged: str
    """Those of another one."""
    verdict: Care
    """What kind of solver that is."""


def documents(seed: int, start: int, count: int, *, mixed: float = 1.0) -> Iterator[Document]:
    """Training documents number `start` to `start + count`; the same for a seed.

    `mixed` tells how far the writers of what is learned are on the way from careful ones to those of the problem; at 0
    there is one response to learn, for several careful ones would be the same.
    """
    for number in range(start, start + count):
        rng = random.Random(f"{seed} {number}")
        problem = draw_problem(rng, "train")
        shares = between(CAREFUL, problem.shares, mixed)
        learned = [written(problem, shares, rng)[1] for _ in range(RESPONSES if mixed else 1)]
        verdict, judged = written(problem, JUDGED, rng)
        yield Document(problem, tuple(learned), judged, verdict)


def written(problem: Problem, shares: Shares, rng: random.Random) -> tuple[Care, str]:
    """A solver, and what it writes."""
    while True:
        care = draw_care(shares, rng)
        with contextlib.suppress(Impossible):  # a slip led out of the range of numbers
            return care, response(problem, care, rng)


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
