"""Multiple choice: a question with four options, among them the right result and the one that a misconception gives."""

import dataclasses
import itertools
from collections.abc import Callable

from solvers import ASTRAY, FAIR, Impossible, Problem, Ref, Shares, Step, Way, results
from words import CONTAINERS, NAMES, PLACES, THINGS, Draw, spread

SHARED = spread(
    (
        "{n} {o} are shared among {m} {p}",
        "{n} {o} are split between {m} {p}",
        "{m} {p} share {n} {o}",
        "{m} {p} divide {n} {o}",
    ),
    ("{X} fairly.", "{t}{X} fairly.", "{X} so that all get the same.", "At the {l}, {X} evenly."),
)
LEFT_OVER = spread(
    ("How many are left over", "How many cannot be shared", "What is the number left over", "Find what remains"),
    ("{X} in all?", "{X} in total?", "{X} when you add them up?"),
)
EACH_GETS = spread(
    (
        "How many does one of each group get",
        "How many do you get from both",
        "What is one share of each",
        "Find one share from each",
    ),
    ("{X} in all?", "{X} in total?", "{X} when you add them up?"),
)
GROUPS_OF_PEOPLE = "children friends girls boys guests players pupils cousins".split()
SCALES = (
    ("years old", "older", "younger", "old"),
    ("inches tall", "taller", "shorter", "tall"),
    ("kilos in weight", "heavier", "lighter", "heavy"),
    ("steps away", "farther away", "nearer", "far away"),
    ("points ahead", "better placed", "worse placed", "far ahead"),
)
"""A unit, the words for more and fewer of it, and the question word."""
UNITS = ("years", "inches", "kilos", "steps", "points")
IS = spread(
    ("{a} is {n} {u}", "{a} is now {n} {u}", "{a} is exactly {n} {u}"),
    ("{X}.", "At first {X}.", "We know that {X}.", "One day {X}."),
)
IS_MORE = spread(
    ("{a} is {n} {k} {w} than {b}", "{a} is {w} than {b} by {n} {k}", "by {n} {k}, {a} is {w} than {b}"),
    ("Also, {X}.", "We know that {X}.", "It turns out that {X}.", "We also know that {X}."),
)
HOW_FAR = spread(
    ("How {q} is {a}", "Find out how {q} {a} is", "Can you tell how {q} {a} is", "Say how {q} {a} is"),
    ("{X}?", "{X} now?", "Work it out: {X}?"),
)


def sharing(draw: Draw) -> Problem:
    """Two things shared among people: what each gets and what is left over are mixed up."""
    left_over = draw.rng.random() < 0.5
    text, steps = [], []
    for _ in range(2):
        n, m = draw.number(10, 40), draw.number(3, 6)
        thing, people = draw.one(THINGS), draw.one(GROUPS_OF_PEOPLE)
        text.append(draw.say(SHARED, n=n, m=m, o=thing, p=people, l=draw.one(PLACES), t=draw.when()))
        quotient, remainder = Way(n, "//", m), Way(n, "%", m)
        steps.append(Step(remainder, quotient, thing) if left_over else Step(quotient, remainder, thing))
    steps.append(Step(Way(Ref(0), "+", Ref(1)), None, "All"))
    text.append(draw.say(LEFT_OVER if left_over else EACH_GETS))
    return _choice("sharing", text, steps, ASTRAY, draw)


def measure(draw: Draw) -> Problem:
    """A chain of comparisons of age, height, weight or distance, told from the far end."""
    place = draw.rng.randrange(len(SCALES))
    unit, up, down, question = SCALES[place]
    people = draw.rng.sample(NAMES, draw.rng.choice((3, 4)))
    start = draw.number(10, 40)
    text = [draw.say(IS, a=people[0], n=start, u=unit)]
    steps: list[Step] = []
    for known, asked in itertools.pairwise(people):
        more, n = draw.rng.random() < 0.5, draw.number(2, 9)
        sentence = draw.say(IS_MORE, a=known, b=asked, n=n, k=UNITS[place], w=up if more else down)
        text.append(sentence[0].upper() + sentence[1:])
        left = Ref(len(steps) - 1) if steps else start
        right, wrong = Way(left, "-", n), Way(left, "+", n)
        label = f"{n} {up if more else down}"
        steps.append(Step(right, wrong, label) if more else Step(wrong, right, label))
    text.append(draw.say(HOW_FAR, a=people[-1], q=question))
    return _choice("measure", text, steps, FAIR, draw)


def packing(draw: Draw) -> Problem:
    """Things packed into containers of a size: full containers and what is left over are mixed up."""
    n, m, extra = draw.number(10, 40), draw.number(3, 6), draw.number(2, 9)
    full = draw.rng.random() < 0.5
    thing, container = draw.one(THINGS), draw.one(CONTAINERS)
    text = [draw.say(PACKED, n=n, m=m, o=thing, c=container, t=draw.when(), a=draw.one(NAMES))]
    text.append(draw.say(MORE_FULL if full else MORE_LOOSE, n=extra, o=thing, c=container, t=draw.when()))
    quotient, remainder = Way(n, "//", m), Way(n, "%", m)
    steps = [Step(quotient, remainder, container) if full else Step(remainder, quotient, thing)]
    steps.append(Step(Way(Ref(0), "+", extra), None, "All"))
    text.append(draw.say(FULL if full else LOOSE, o=thing, c=container))
    return _choice("packing", text, steps, ASTRAY, draw)


PACKED = spread(
    (
        "{a} packs {n} {o} into {c} of {m}",
        "{a} puts {n} {o} into {c} of {m}",
        "{a} sorts {n} {o} into {c} of {m}",
        "{a} has {n} {o} and fills {c} of {m}",
    ),
    ("{X}.", "{t}{X}.", "{X} as far as it goes.", "One day {X}."),
)
MORE_FULL = spread(
    ("{n} full {c} were there before", "there are {n} more full {c}", "{n} other {c} are full too"),
    ("{X}.", "We know that {X}.", "Also, {X}."),
)
MORE_LOOSE = spread(
    ("{n} loose {o} were there before", "there are {n} more loose {o}", "{n} other {o} are loose too"),
    ("{X}.", "We know that {X}.", "Also, {X}."),
)
FULL = spread(
    ("How many full {c} are there", "How many {c} are full", "Find the number of full {c}", "Count the full {c}"),
    ("{X} in all?", "{X} now?", "{X} in the end?"),
)
LOOSE = spread(
    ("How many loose {o} are there", "How many {o} are loose", "Find the number of loose {o}", "Count the loose {o}"),
    ("{X} in all?", "{X} now?", "{X} in the end?"),
)


def _choice(kind: str, text: list[str], steps: list[Step], shares: Shares, draw: Draw) -> Problem:
    """Put a question and its options together: two results that ways lead to, and three beside them."""
    bare = Problem("multiple choice", kind, "", tuple(steps), shares)
    right, mistaken = (results(bare, care, draw.rng)[-1] for care in ("careful", "mistaken"))
    if right == mistaken:
        raise Impossible
    options = {right, mistaken}
    while len(options) < 4:
        beside = draw.one((right, mistaken)) + draw.one((-10, -4, -3, -2, -1, 1, 2, 3, 4, 10))
        options |= {beside} if beside >= 0 else set()
    ordered = list(options)
    draw.rng.shuffle(ordered)
    listed = "Choose: {}, {}, {} or {}.".format(*ordered)
    return dataclasses.replace(
        bare,
        question=" ".join(text) + "\n" + listed,
        options=tuple(ordered),
        templates=frozenset(draw.templates),
        numbers=frozenset(draw.numbers),
    )


CHOICES: tuple[Callable[[Draw], Problem], ...] = (sharing, measure, packing)
"""Every kind of multiple choice question."""
