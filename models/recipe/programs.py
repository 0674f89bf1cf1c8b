"""Code output: small Python programs, each kind with something that beginners misread.

Lists that are counted from 1, quotient and remainder mixed up, and assignments of two names that are carried out one
after the other.
"""

from collections.abc import Callable

from solvers import ASTRAY, FAIR, Problem, Ref, Shares, Step, Way
from words import Draw, spread

ASK = spread(
    (
        "What does this print",
        "What is printed",
        "Find the output",
        "Trace the program",
        "What does Python show",
        "Give the output",
        "What comes out",
    ),
    ("{X}?", "{X} here?", "Read the code. {X}?", "{X} in the end?", "Run it in your head: {X}?"),
)
LISTS = ("a", "b", "nums", "data", "row", "items")
VARIABLES = ("x", "y", "n", "k", "s", "t", "total", "value")


def indexing(draw: Draw) -> Problem:
    """Elements of a list, added and taken away: the misconception counts from 1."""
    name = draw.one(LISTS)
    size = draw.rng.choice((3, 4))
    numbers = [draw.number(2, 40) for _ in range(size)]
    count = 2 if size == 3 else draw.rng.choice((2, 2, 3))
    places = draw.rng.sample(range(1, size), count)
    signs = [draw.one("+-") for _ in range(count - 1)]
    steps = [
        Step(Way(numbers[place]), Way(numbers[place - 1]), f"{name}[{place}]", slips=tuple(numbers)) for place in places
    ]
    expression = f"{name}[{places[0]}]"
    total = Ref(0)
    for number, (sign, place) in enumerate(zip(signs, places[1:], strict=True), start=1):
        expression += f" {sign} {name}[{place}]"
        steps.append(Step(Way(total, "+" if sign == "+" else "-", Ref(number)), None, "then"))
        total = Ref(len(steps) - 1)
    return _program("indexing", [f"{name} = {numbers}", f"print({expression})"], steps, ASTRAY, draw)


def division(draw: Draw) -> Problem:
    """Quotients and remainders: the misconception mixes them up."""
    first, second, result = draw.rng.sample(VARIABLES, 3)
    lines, steps = [], []
    for name in (first, second):
        whole = draw.rng.random() < 0.5
        dividend, divisor = draw.number(10, 40), draw.number(3, 6)
        lines.append(f"{name} = {dividend} {'//' if whole else '%'} {divisor}")
        quotient, remainder = Way(dividend, "//", divisor), Way(dividend, "%", divisor)
        steps.append(Step(quotient, remainder, name) if whole else Step(remainder, quotient, name))
    sign, n = draw.one("+*"), draw.number(2, 9)
    steps.append(Step(Way(Ref(0), "+", Ref(1)), None, result))
    steps.append(Step(Way(Ref(2), "+" if sign == "+" else "*", n), None, "print"))
    lines += [f"{result} = {first} + {second}", f"print({result} {sign} {n})"]
    return _program("division", lines, steps, ASTRAY, draw)


def swap(draw: Draw) -> Problem:
    """Two names assigned at once: the misconception assigns one after the other."""
    x, y = draw.rng.sample(VARIABLES, 2)
    first, second = draw.number(10, 30), draw.number(10, 30)
    lines, steps = [f"{x}, {y} = {first}, {second}"], []
    values: tuple[int | Ref, int | Ref] = (first, second)
    for _ in range(2):
        plus, n = draw.rng.random() < 0.5, draw.number(2, 9)
        lines.append(f"{x}, {y} = {y}, {x} {'+-'[not plus]} {n}")
        # The new x is the old y; the new y comes from the old x, or by the misconception from the new one.
        steps.append(Step(Way(values[1]), None, x, slips=(first, second)))
        new_x = Ref(len(steps) - 1)
        steps.append(Step(Way(values[0], "+" if plus else "-", n), Way(new_x, "+" if plus else "-", n), y))
        values = (new_x, Ref(len(steps) - 1))
    steps.append(Step(Way(values[0], "+", values[1]), None, "print"))
    return _program("swap", [*lines, f"print({x} + {y})"], steps, FAIR, draw)


def _program(kind: str, lines: list[str], steps: list[Step], shares: Shares, draw: Draw) -> Problem:
    text = draw.say(ASK) + "\n" + "\n".join(lines)
    return Problem(
        "code output",
        kind,
        text,
        tuple(steps),
        shares,
        templates=frozenset(draw.templates),
        numbers=frozenset(draw.numbers),
    )


PROGRAMS: tuple[Callable[[Draw], Problem], ...] = (indexing, division, swap)
"""Every kind of program."""
