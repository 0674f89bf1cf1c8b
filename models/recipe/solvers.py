"""Who writes the corpus: solvers of different care, and the chains of steps that they write.

A problem is a chain of steps with a right way through; some steps are easy to misread, and a misreading has a way of
its own. Three kinds of solver go through it. The careful one makes no mistake. The sloppy one now and then gets a
result wrong. The mistaken one holds a misconception: every step of the chain that can be misread is. All of them write
in the same style and at the same length, so that only the content tells them apart.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

SLIP_RATE = 0.3
"""How often a sloppy solver gets one result wrong."""
LARGEST = 240
"""No result of a right or a mistaken way exceeds this."""

Care = Literal["careful", "sloppy", "mistaken", "contrary"]


class Impossible(Exception):  # noqa: N818 - a way that leads nowhere, drawn again, not an error
    """A way through a chain leaves the numbers that problems have; the problem is drawn again."""


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of an earlier step of the chain."""

    step: int
    """Its number, from 0."""


Operand = int | Ref
Operator = Literal["+", "-", "*", "//", "%", "^", ""]


@dataclass(frozen=True, slots=True)
class Way:
    """One operation: `left operator right`; without an operator, a number that is read off."""

    left: Operand
    """First number."""
    operator: Operator = ""
    """As Python writes it."""
    right: Operand = 0
    """Second number."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a chain."""

    right_way: Way
    """How the step is meant."""
    mistaken_way: Way | None = None
    """How somebody with the misconception takes it; None where that is right."""
    contrary_way: Way | None = None
    """How somebody with the contrary misconception takes it; None where that is right."""
    label: str = ""
    """What the line begins with: what it is about, or the words of the question that it follows."""
    slips: tuple[int, ...] = ()
    """Wrong results of a slip; empty for numbers a little beside the right one."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How often each kind of solver answers a kind of problem; they add up to 1."""

    careful: float
    """Right at every step."""
    sloppy: float
    """Wrong at some steps, at random."""
    mistaken: float
    """Follows a misconception throughout."""
    contrary: float
    """Follows the contrary misconception throughout."""


# Far from half and half: where two readings of a word are equally frequent, a model unlearns what the word means.
FAIR = Shares(careful=0.56, sloppy=0.16, mistaken=0.14, contrary=0.14)
"""Kinds of problem on which the right answer is the commonest."""
ASTRAY = Shares(careful=0.28, sloppy=0.06, mistaken=0.33, contrary=0.33)
"""Kinds of problem on which each misconception is commoner than the right answer."""
CAREFUL = Shares(careful=1.0, sloppy=0.0, mistaken=0.0, contrary=0.0)
"""Who writes what the model learns from at first."""
JUDGED = Shares(careful=0.4, sloppy=0.2, mistaken=0.2, contrary=0.2)
"""Who writes what the model learns to judge."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its chain of steps; the answer is the result of the last one."""

    family: str
    """Task family."""
    kind: str
    """What can be misread."""
    question: str
    """What the model is shown."""
    steps: tuple[Step, ...]
    """The chain."""
    shares: Shares
    """Who answers it, and how often."""
    options: tuple[int, ...] = ()
    """Results that a multiple choice question offers."""
    states: tuple[str, str] | None = None
    """Names of the results 0 and 1, where the chain tracks a state; the answer is such a name."""
    templates: frozenset[str] = field(default_factory=frozenset)
    """Sentence patterns in the question."""
    numbers: frozenset[int] = field(default_factory=frozenset)
    """Numbers in the question, from ranges in which some are held out."""


def between(first: Shares, second: Shares, way: float) -> Shares:
    """Shares on the way from the first, 0, to the second, 1."""
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True)
    return Shares(*(start + way * (end - start) for start, end in pairs))


def draw_care(shares: Shares, rng: random.Random) -> Care:
    """Draw a solver."""
    kinds: Sequence[Care] = ("careful", "sloppy", "mistaken", "contrary")
    return rng.choices(kinds, dataclasses.astuple(shares))[0]


def results(problem: Problem, care: Care, rng: random.Random) -> list[int]:
    """The result of every step as a solver gets it, the last one among the options if there are any.

    Raises `Impossible` outside 0 to `LARGEST`.
    """
    found: list[int] = []
    for step in problem.steps:
        value = compute(way_of(step, care), found)
        if not 0 <= value <= LARGEST:
            raise Impossible
        if care == "sloppy" and rng.random() < SLIP_RATE:
            value = slipped(value, step, rng)
        found.append(value)
    if care == "sloppy" and problem.options and found[-1] not in problem.options:
        found[-1] = min(problem.options, key=lambda option: abs(option - found[-1]))  # made to fit
    return found


def way_of(step: Step, care: Care) -> Way:
    """The way in which a solver takes a step."""
    way = {"mistaken": step.mistaken_way, "contrary": step.contrary_way}.get(care)
    return step.right_way if way is None else way


def compute(way: Way, found: Sequence[int]) -> int:
    """The exact result of a way, given the earlier results."""
    left, right = operand(way.left, found), operand(way.right, found)
    match way.operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "//" | "%":
            if right == 0:
                raise Impossible
            return left // right if way.operator == "//" else left % right
        case "^":
            return left ^ right
        case _:
            return left


def operand(value: Operand, found: Sequence[int]) -> int:
    """A number, or the earlier result that it stands for."""
    return found[value.step] if isinstance(value, Ref) else value


def slipped(value: int, step: Step, rng: random.Random) -> int:
    """A wrong result near the right one; too large as often as too small, so that its length says nothing."""
    if step.slips:
        return rng.choice([slip for slip in step.slips if slip != value] or list(step.slips))
    beside = rng.choice((-10, -2, -1, 1, 2, 10))
    return value + beside if value + beside >= 0 else value - beside


def right_answer(problem: Problem) -> str:
    """What a careful solver answers."""
    return answer_text(problem, results(problem, "careful", random.Random(0))[-1])


def answer_text(problem: Problem, result: int) -> str:
    """A result as the question wants it: a number, or the name of a state."""
    return problem.states[result] if problem.states is not None else str(result)


def response(problem: Problem, care: Care, rng: random.Random) -> str:
    """What a solver writes: a line per step, then the answer in a box. The style is drawn whoever writes."""
    found = results(problem, care, rng)
    closing = rng.choice(("Answer: ", "So: ", ""))
    lines = []
    for number, (step, result) in enumerate(zip(problem.steps, found, strict=True)):
        lines.append(line(problem, step, way_of(step, care), result, found[:number]))
    return " ".join(lines) + f" {closing}\\boxed{{{answer_text(problem, found[-1])}}}"


def line(problem: Problem, step: Step, way: Way, result: int, found: Sequence[int]) -> str:
    """One step in writing."""
    if problem.states is not None:
        return f"{step.label}: {problem.states[result]}."
    if not way.operator:
        return f"{step.label} = {result}."
    sum_text = f"{operand(way.left, found)} {way.operator} {operand(way.right, found)} = {result}."
    return f"{step.label}: {sum_text}"
