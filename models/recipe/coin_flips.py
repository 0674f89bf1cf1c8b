"""State tracking: a thing with two states, and people who change it, do not, or do so twice.

One misconception takes every sentence for a change, the other none. Problems are drawn so that at least one of them
ends in the wrong state; each state is as often the right one.
"""

from solvers import ASTRAY, FAIR, Problem, Ref, Step, Way
from words import Draw, spread

OBJECTS = (
    ("coin", ("tails", "heads"), ("flips", "turns over")),
    ("lamp", ("off", "on"), ("switches", "toggles")),
    ("card", ("face down", "face up"), ("flips", "turns over")),
    ("switch", ("down", "up"), ("flips", "toggles")),
    ("door", ("closed", "open"), ("moves", "swings round")),
    ("sign", ("back", "front"), ("turns round", "flips")),
)
"""A thing, its states 0 and 1, and what changes them."""
FIRST = spread(
    (
        "the {x} is {s}",
        "a {x} is {s}",
        "you see a {x} that is {s}",
        "the {x} shows {s}",
        "there is a {x} and it is {s}",
        "the {x} is set to {s}",
    ),
    ("At first {X}.", "To begin with, {X}.", "In the morning {X}.", "Now {X}."),
)
ONCE = spread(
    ("{a} {v} the {x}", "{a} {v} the {x} once"), ("{X}.", "{t}{X}.", "{t}{X} with care.", "{t}{X} and leaves.")
)
TWICE = spread(
    ("{a} {v} the {x} twice", "{a} {v} the {x} two times"),
    ("{X}.", "{t}{X}.", "{t}{X} with care.", "{t}{X} and leaves."),
)
NOT = spread(
    ("{a} does not touch the {x}", "{a} leaves the {x} alone", "{a} only looks at the {x}", "{a} walks past the {x}"),
    ("{X}.", "{t}{X}.", "{t}{X} and leaves."),
)
ASKED = spread(
    (
        "How is the {x}",
        "What does the {x} show",
        "In which state is the {x}",
        "How do we find the {x}",
        "What can be said of the {x}",
    ),
    ("{X}?", "{X} now?", "{X} in the end?", "{X} after all that?", "Think step by step. {X}?"),
)


def coin_flip(draw: Draw) -> Problem:
    """Three to five people and one thing."""
    name, states, verbs = draw.rng.choice(OBJECTS)
    first = draw.rng.randrange(2)
    text = [draw.say(FIRST, x=name, s=states[first])]
    steps = []
    people = draw.names(draw.rng.choice((3, 4, 4, 5)))
    for person in people:
        done = draw.rng.choices((0, 1, 2), (3, 4, 3))[0]
        text.append(draw.say((NOT, ONCE, TWICE)[done], a=person, x=name, v=draw.one(verbs), t=draw.when()))
        state = Ref(len(steps) - 1) if steps else first
        label = f"{person} {('not', 'once', 'twice')[done]}"
        changed, kept = Way(state, "^", 1), Way(state, "^", 0)
        steps.append(
            Step(changed, None, kept, label, (0, 1)) if done == 1 else Step(kept, changed, None, label, (0, 1))
        )
    text.append(draw.say(ASKED, x=name))
    return Problem(
        "coin flip",
        "twice",
        " ".join(text),
        tuple(steps),
        ASTRAY if len(steps) % 2 else FAIR,
        states=states,
        templates=frozenset(draw.templates),
        numbers=frozenset(draw.numbers),
    )
