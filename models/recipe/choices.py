"""Multiple choice: a question with four options, among them the right result and the one that a misconception gives."""

import dataclasses
import itertools
from collections.abc import Callable

from solvers import ASTRAY, FAIR, Impossible, Problem, Ref, Shares, Step, Way, results
from words import CONTAINERS, NAMES, PLACES, THINGS, Draw, spread

SHARED = spread(
    (
        "{n} {o} and {k} more are shared among {m} {p}",
        "{n} {o} and {k} more are split between {m} {p}",
        "{m} {p} share {n} {o} and {k} more",
        "{m} {p} divide {n} {o} and {k} more",
    ),
    ("{X} fairly", "{t}{X} fairly", "{X} so that all get the same", "At the {l}, {X} evenly"),
)
LEFT = spread(
    ("count what is left over", "count what cannot be shared", "take what is left over", "write down what remains"),
    ("{X}.", "we {X}.", "please {X}.", "now {X}."),
)
EACH = spread(
    ("count what each of them gets", "count one share", "take what one of them gets", "write down one share"),
    ("{X}.", "we {X}.", "please {X}.", "now {X}."),
)
IN_ALL = spread(
    ("How many is that", "How much is it", "What do we get", "Find the sum"),
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
    """Things shared among people: what each gets and what is left over are mixed up in one way or the other."""
    text, steps = [], []
    for _ in range(2):
        left, n, k, m = draw.rng.random() < 0.5, draw.number(10, 31), draw.number(2, 9), draw.number(3, 6)
        thing, people = draw.one(THINGS), draw.one(GROUPS_OF_PEOPLE)
        shared = draw.say(SHARED, n=n, k=k, m=m, o=thing, p=people, l=draw.one(PLACES), t=draw.when())
        text.append(f"{shared}; {draw.say(LEFT if left else EACH)}")
        steps.append(Step(Way(n, "+", k), label=thing))
        quotient, remainder = Way(Ref(len(steps) - 1), "//", m), Way(Ref(len(steps) - 1), "%", m)
        label = f"{'left' if left else 'each'} {thing}"
        steps.append(Step(remainder, quotient, None, label) if left else Step(quotient, None, remainder, label))
    text.append(draw.say(IN_ALL))
    return _choice("sharing", text, [*steps, Step(Way(Ref(1), "+", Ref(3)), label="All")], ASTRAY, draw)


def measure(draw: Draw) -> Problem:
    """Ages, heights or distances compared, told from the far end: misconceptions always add or always take away."""
    place = draw.rng.randrange(len(SCALES))
    unit, up, down, question = SCALES[place]
    people = draw.rng.sample(NAMES, draw.rng.choice((3, 4, 4)))
    start = draw.number(10, 40)
    text = [draw.say(IS, a=people[0], n=start, u=unit)]
    steps: list[Step] = []
    for known, asked in itertools.pairwise(people):
        is_more, n = draw.rng.random() < 0.5, draw.number(2, 9)
        sentence = draw.say(IS_MORE, a=known, b=asked, n=n, k=UNITS[place], w=up if is_more else down)
        text.append(sentence[0].upper() + sentence[1:])
        left = Ref(len(steps) - 1) if steps else start
        less, more = Way(left, "-", n), Way(left, "+", n)
        label = f"{n} {up if is_more else down}"
        steps.append(Step(less, more, None, label) if is_more else Step(more, None, less, label))
    text.append(draw.say(HOW_FAR, a=people[-1], q=question))
    return _choice("measure", text, steps, FAIR, draw)


def packing(draw: Draw) -> Problem:
    """Things packed into containers: full containers and loose things are mixed up in one way or the other."""
    text, steps = [], []
    for _ in range(2):
        full, n, k, m = draw.rng.random() < 0.5, draw.number(10, 31), draw.number(2, 9), draw.number(3, 6)
        thing, container = draw.one(THINGS), draw.one(CONTAINERS)
        packed = draw.say(PACKED, n=n, k=k, m=m, o=thing, c=container, t=draw.when(), a=draw.one(NAMES))
        text.append(f"{packed}; {draw.say(FULL if full else LOOSE, o=thing, c=container)}")
        steps.append(Step(Way(n, "+", k), label=thing))
        quotient, remainder = Way(Ref(len(steps) - 1), "//", m), Way(Ref(len(steps) - 1), "%", m)
        label = f"full {container}" if full else f"loose {thing}"
        steps.append(Step(quotient, remainder, None, label) if full else Step(remainder, None, quotient, label))
    text.append(draw.say(IN_ALL))
    return _choice("packing", text, [*steps, Step(Way(Ref(1), "+", Ref(3)), label="All")], ASTRAY, draw)


PACKED = spread(
    (
        "{a} packs {n} {o} and {k} more into {c} of {m}",
        "{a} puts {n} {o} and {k} more into {c} of {m}",
        "{a} sorts {n} {o} and {k} more into {c} of {m}",
        "{a} has {n} {o} and {k} more and fills {c} of {m}",
    ),
    ("{X}", "{t}{X}", "{X} as far as it goes", "One day {X}"),
)
FULL = spread(
    ("count the full {c}", "take the number of full {c}", "write down how many {c} are full"),
    ("{X}.", "we {X}.", "please {X}.", "now {X}."),
)
LOOSE = spread(
    ("count the loose {o}", "take the number of loose {o}", "write down how many {o} are loose"),
    ("{X}.", "we {X}.", "please {X}.", "now {X}."),
)


def _choice(kind: str, text: list[str], steps: list[Step], shares: Shares, draw: Draw) -> Problem:
    """Put a question and its options together: the results that ways lead to, and others beside them."""
    bare = Problem("multiple choice", kind, "", tuple(steps), shares)
    ways = [results(bare, care, draw.rng)[-1] for care in ("careful", "mistaken", "contrary")]
    options = set(ways)
    if len(options) < len(ways):
        raise Impossible
    while len(options) < 4:
        beside = draw.one(ways) + draw.one((-10, -4, -3, -2, -1, 1, 2, 3, 4, 10))
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
