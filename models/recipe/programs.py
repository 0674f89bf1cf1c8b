"""Code output: small Python programs, each kind with something that beginners misread.

Signs that are passed over, and quotients and remainders mixed up.
"""

from collections.abc import Callable

from solvers import ASTRAY, FAIR, Operand, Operator, Problem, Ref, Shares, Step, Way
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
    """Elements of a list, added and taken away: one misconception always adds, the other always takes away."""
    name = draw.one(LISTS)
    size = draw.rng.choice((3, 4))
    numbers = [draw.number(2, 40) for _ in range(size)]
    places = draw.rng.sample(range(size), 3)
    signs: list[Operator] = draw.rng.sample(["+", "-"], 2)
    steps = [Step(Way(numbers[place]), label=f"{name}[{place}]", slips=tuple(numbers)) for place in places]
    expression, total = f"{name}[{places[0]}]", Ref(0)
    for number, (sign, place) in enumerate(zip(signs, places[1:], strict=True), start=1):
        expression += f" {sign} {name}[{place}]"
        steps.append(_added_or_taken_away(sign, total, Ref(number), f"{sign} {name}[{place}]"))
        total = Ref(len(steps) - 1)
    return _program("indexing", [f"{name} = {numbers}", f"print({expression})"], steps, ASTRAY, draw)


def division(draw: Draw) -> Problem:
    """Quotients and remainders: misconceptions take every division for a quotient, or for a remainder."""
    *names, result = draw.rng.sample(VARIABLES, 3)
    lines, steps = [], []
    for name in names:
        whole = draw.rng.random() < 0.5
        first, second, divisor = draw.number(10, 31), draw.number(2, 9), draw.number(3, 6)
        lines.append(f"{name} = ({first} + {second}) {'//' if whole else '%'} {divisor}")
        steps.append(Step(Way(first, "+", second), label=name))
        dividend = Ref(len(steps) - 1)
        quotient, remainder = Way(dividend, "//", divisor), Way(dividend, "%", divisor)
        steps.append(Step(quotient, None, remainder, name) if whole else Step(remainder, quotient, None, name))
    steps.append(Step(Way(Ref(1), "+", Ref(3)), label=result))
    sign, n = draw.one("+*"), draw.number(2, 9)
    steps.append(Step(Way(Ref(4), "+" if sign == "+" else "*", n), label="print"))
    lines += [f"{result} = {' + '.join(names)}", f"print({result} {sign} {n})"]
    return _program("division", lines, steps, ASTRAY, draw)


def updates(draw: Draw) -> Problem:
    """A name that is assigned again and again: one misconception always adds, the other always takes away."""
    name, value = draw.one(VARIABLES), draw.number(10, 40)
    lines, steps = [f"{name} = {value}"], []
    for _ in range(draw.rng.choice((2, 3, 3))):
        sign: Operator = draw.one("+-")  # type: ignore[assignment]
        n = draw.number(2, 9)
        lines.append(f"{name} {sign}= {n}")
        before = Ref(len(steps) - 1) if steps else value
        steps.append(_added_or_taken_away(sign, before, n, f"{name} {sign}= {n}"))
    sign, n = draw.one("+*"), draw.number(2, 4)  # type: ignore[assignment]
    steps.append(Step(Way(Ref(len(steps) - 1), sign, n), label="print"))
    return _program("updates", [*lines, f"print({name} {sign} {n})"], steps, FAIR, draw)


def _added_or_taken_away(sign: Operator, left: Operand, right: Operand, label: str) -> Step:
    """A step that one misconception takes for an addition, and the other for a subtraction."""
    greater, less = Way(left, "+", right), Way(left, "-", right)
    return Step(greater, None, less, label) if sign == "+" else Step(less, greater, None, label)


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


PROGRAMS: tuple[Callable[[Draw], Problem], ...] = (indexing, division, updates)
"""Every kind of program."""
