"""Word problems: chains of additions, subtractions and products, each kind with something to misread.

A misreading always has a mirror image: where a problem of a kind says more, another one says fewer, and the mistaken
solver turns round both. So no sign, word or length goes with wrong answers.
"""

import itertools
from collections.abc import Callable

from solvers import ASTRAY, FAIR, Operand, Problem, Ref, Shares, Step, Way
from words import COLOURS, CONTAINERS, THINGS, Draw, spread

QUESTIONS = spread(
    (
        "How many {o} does {a} have",
        "How many {o} has {a} got",
        "Find the number of {o} that {a} has",
        "What number of {o} does {a} have",
    ),
    ("{X}?", "{X} now?", "Work it out: {X}?", "Tell me: {X}?"),
)
START = spread(
    (
        "{a} has {n} {o}",
        "{a} owns {n} {o}",
        "{a} starts with {n} {o}",
        "{a} keeps {n} {o} at home",
        "there are {n} {o} in the room of {a}",
    ),
    ("{X}.", "At first {X}.", "We know that {X}.", "One day {X}."),
)
MORE_THAN = spread(
    (
        "{a} has {n} more {o} than {b}",
        "{a} has {n} {o} more than {b}",
        "{a} owns {n} more {o} than {b}",
        "{a} got {n} more {o} than {b}",
    ),
    ("{X}.", "That means {a} is ahead: {X}.", "As it happens, {X}.", "We also know that {X}."),
)
FEWER_THAN = [
    pattern.replace("more {o}", "fewer {o}").replace("{o} more", "{o} fewer").replace("ahead", "behind")
    for pattern in MORE_THAN
]
TWICE = spread(
    (
        "{a} has twice as many {o} as {b}",
        "{a} has two times as many {o} as {b}",
        "{a} has double the {o} of {b}",
        "{a} owns twice the {o} of {b}",
    ),
    ("{X}.", "It turns out that {X}.", "We also know that {X}."),
)
HALF = spread(
    (
        "{a} has half as many {o} as {b}",
        "{a} has just half as many {o} as {b}",
        "{a} has half the {o} of {b}",
        "{a} owns half the {o} of {b}",
    ),
    ("{X}.", "It turns out that {X}.", "We also know that {X}."),
)
EACH = spread(
    (
        "{a} has {m} {c} of {n} {o} each",
        "{a} has {m} {c} with {n} {o} in each",
        "{a} fills {m} {c} with {n} {o} each",
        "{a} packs {m} {c}, each of {n} {o}",
    ),
    ("{X}.", "{t}{X}.", "We see that {X}."),
)
BOTH = spread(
    (
        "{a} has {m} {p} {o} and {n} {q} {o}",
        "{a} finds {m} {p} {o} and {n} {q} {o}",
        "{a} has {m} {o} that are {p} and {n} that are {q}",
        "{a} picks {m} {p} and {n} {q} {o}",
    ),
    ("{X}.", "{t}{X}.", "We see that {X}."),
)
TOGETHER = spread(
    ("How many {o} do they have", "How many {o} is that", "Find the number of {o}", "What is the number of {o}"),
    ("{X} together?", "{X} in all?", "{X} in total?", "{X} if you count all of them?"),
)
GAINING = ("bought", "found", "picked", "made", "won", "earned")
LOSING = ("sold", "lost", "dropped", "ate", "broke", "gave")
CHANGED = spread(
    ("{a} {v} {n} {o}", "{a} {v} {n} of the {o}", "{a} quickly {v} {n} {o}", "{a} and a friend {v} {n} {o}"),
    ("{t}{X}.", "{t}{X} on the way.", "{t}{X} by chance."),
)
AT_THE_END = spread(
    ("{a} has {n} {o}", "{a} holds {n} {o}", "{a} is left with {n} {o}", "{a} counts {n} {o}"),
    ("In the end {X}.", "Now {X}.", "Today {X}.", "After all that {X}."),
)
AT_THE_START = spread(
    (
        "How many {o} did {a} have",
        "How many {o} were there for {a}",
        "Find the number of {o} that {a} had",
        "What number of {o} did {a} have",
    ),
    ("{X} at first?", "{X} at the start?", "{X} before all that?"),
)


def compare(draw: Draw) -> Problem:
    """A chain of comparisons, told from the far end: one misconception always adds, the other always takes away."""
    people, thing = draw.names(draw.rng.choice((3, 4, 4))), draw.one(THINGS)
    start = draw.number(10, 40)
    text = [draw.say(START, a=people[0], n=start, o=thing)]
    steps = []
    for place, (known, asked) in enumerate(itertools.pairwise(people)):
        more, n = draw.rng.random() < 0.5, draw.number(2, 9)
        text.append(draw.say(MORE_THAN if more else FEWER_THAN, a=known, b=asked, n=n, o=thing))
        less, greater = Way(before(place, start), "-", n), Way(before(place, start), "+", n)
        label = f"{n} {'more' if more else 'fewer'}"
        steps.append(Step(less, greater, None, label) if more else Step(greater, None, less, label))
    text.append(draw.say(QUESTIONS, a=people[-1], o=thing))
    return problem("compare", text, steps, ASTRAY, draw)


def scale(draw: Draw) -> Problem:
    """Twice and half as many, told from the far end, and one plain change: misconceptions always double or halve."""
    people, thing = draw.names(draw.rng.choice((3, 4))), draw.one(THINGS)
    start = draw.number(8, 40, step=4)
    text = [draw.say(START, a=people[0], n=start, o=thing)]
    steps = []
    for place, (known, asked) in enumerate(itertools.pairwise(people)):
        twice = draw.rng.random() < 0.5
        text.append(draw.say(TWICE if twice else HALF, a=known, b=asked, o=thing))
        halved, doubled = Way(before(place, start), "//", 2), Way(before(place, start), "*", 2)
        steps.append(Step(halved, doubled, None, "twice") if twice else Step(doubled, None, halved, "half"))
    gains, n = draw.rng.random() < 0.5, draw.number(2, 9)
    verb = draw.one(GAINING if gains else LOSING)
    text.append(draw.say(CHANGED, a=people[-1], v=verb, n=n, o=thing, t=draw.when()))
    steps.append(Step(Way(Ref(len(steps) - 1), "+" if gains else "-", n), label=f"{verb} {n}"))
    text.append(draw.say(QUESTIONS, a=people[-1], o=thing))
    return problem("scale", text, steps, FAIR, draw)


def groups(draw: Draw) -> Problem:
    """So many groups of so many, and so many and so many: misconceptions always add or always multiply."""
    people, thing = draw.names(draw.rng.choice((2, 3))), draw.one(THINGS)
    text, steps = [], []
    for person in people:
        each, m, n = draw.rng.random() < 0.5, draw.number(2, 6), draw.number(3, 6)
        if each:
            text.append(draw.say(EACH, a=person, m=m, n=n, o=thing, c=draw.one(CONTAINERS), t=draw.when()))
        else:
            p, q = draw.rng.sample(COLOURS, 2)
            text.append(draw.say(BOTH, a=person, m=m, n=n, o=thing, p=p, q=q, t=draw.when()))
        product, total = Way(m, "*", n), Way(m, "+", n)
        steps.append(Step(product, total, None, person) if each else Step(total, None, product, person))
    together: Operand = Ref(0)
    for place in range(1, len(people)):
        steps.append(Step(Way(together, "+", Ref(place)), label="All"))
        together = Ref(len(steps) - 1)
    text.append(draw.say(TOGETHER, o=thing))
    return problem("groups", text, steps, ASTRAY, draw)


def backward(draw: Draw) -> Problem:
    """What there was at first, from what there is at the end: misconceptions always take away or always add."""
    (person,), thing = draw.names(1), draw.one(THINGS)
    end = draw.number(10, 40)
    changes = []
    for _ in range(draw.rng.choice((2, 3, 3))):
        gains, n = draw.rng.random() < 0.5, draw.number(2, 9)
        changes.append((gains, n, draw.one(GAINING if gains else LOSING)))
    text = [draw.say(CHANGED, a=person, v=verb, n=n, o=thing, t=draw.when()) for _, n, verb in changes]
    text.append(draw.say(AT_THE_END, a=person, n=end, o=thing))
    steps = []
    for place, (gained, n, verb) in enumerate(reversed(changes)):
        less, more = Way(before(place, end), "-", n), Way(before(place, end), "+", n)
        label = f"{verb} {n}"
        steps.append(Step(less, None, more, label) if gained else Step(more, less, None, label))
    text.append(draw.say(AT_THE_START, a=person, o=thing))
    return problem("backward", text, steps, ASTRAY, draw)


def before(place: int, start: int) -> int | Ref:
    """What a step of a chain goes on from: the first number, or the result of the step before."""
    return Ref(place - 1) if place else start


def problem(kind: str, text: list[str], steps: list[Step], shares: Shares, draw: Draw) -> Problem:
    """Put a word problem together."""

    return Problem(
        "word problem",
        kind,
        " ".join(text),
        tuple(steps),
        shares,
        templates=frozenset(draw.templates),
        numbers=frozenset(draw.numbers),
    )


WORD_PROBLEMS: tuple[Callable[[Draw], Problem], ...] = (compare, scale, groups, backward)
"""Every kind of word problem."""
