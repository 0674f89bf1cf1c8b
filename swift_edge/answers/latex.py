"""LaTeX mathematics to a text that equal answers share: `\\frac{1}{2}`, `0.5` and `.50` all come to `1/2`.

Structure (lists, tuples, intervals, unions, equations, words) is read here, each expression in it by `expression` and
`value`. Whatever does not read as mathematics is compared as text. The work is bounded by the length and the depth that
are accepted, both checked first, and by the steps that are counted.

Conventions, those of the MATH data:

* Degrees, percent signs, currency and units after a number are dropped, so `50\\%` is 50 and not 0.5.
* Numbers side by side are never multiplied: `10\\,000` and `1 000` are thousands, `3 4` is text.
* An equation answers by its right side where its left side is a name or a number: `x = 5`, `AB = 5`, `8-4 = 4`,
  `f(x) = 2x+3`. An equation in two or three of x, y, z that is linear in the last of them answers by what that one is:
  `2x-y+3=0` and `y = 2x+3` are `2x+3`. Others are equal when one is a multiple of the other.
* Inequalities are intervals: `x > 2` is `(2, \\infty)`. Lists and sets have no order; `x=1, y=2` is the pair `(1, 2)`.
* A time of day (`12:30`) is no ratio; `1:2` is. A number in another base (`52_8`) equals itself only.
* What is said of the letters of an answer says nothing (`f(x) = x` for all x), but that one of them is any integer.
* Decimals are exact, 0.33 is not 1/3; `2.5e-3` is 0.0025.

`agree_latex`, which grades, is wider than equality. A written decimal is right for a number that it rounds, at six
significant digits or more: 0.333333 for 1/3, 1.41421 for the root of 2. `50\\%` is right for 0.5 and for 50, and
`180^\\circ` for 180 and for pi. An equation is right by either of its sides or as the same equation, a point as a
column or without brackets in its order, a residue class by its number, `10:15` for the ratio 2:3.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from swift_edge.answers import reading, residue
from swift_edge.answers.expression import (
    CLOSING,
    DEEPEST_NESTING,
    GREEK,
    OPENING,
    WORD,
    Node,
    NotMathematicsError,
    is_word,
    plain_number,
    read_expression,
    tokenize,
)
from swift_edge.answers.matrix import Matrix
from swift_edge.answers.reading import ALL_REALS, GREATEST, LEAST, NOTHING, Reading, Span, of_list, of_text, of_tuple
from swift_edge.answers.residue import NoValueError, Residue
from swift_edge.answers.spelt import SMALL, TENS
from swift_edge.answers.typesetting import clean
from swift_edge.answers.value import names_in, number_of, value_of

LONGEST_ANSWER: Final = 2000
"""Characters; longer answers are compared as text."""
COMPARISONS: Final = frozenset(["<", ">", "<=", ">=", "!="])
RELATIONS: Final = frozenset(["=", r"\approx", r"\equiv", r"\in", r"\notin", *COMPARISONS])
SEPARATORS: Final = frozenset([",", ";", r"\land", r"\lor", "&", r"\\"])
CLOCK: Final = re.compile(r"([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?:word:([ap]m))?")
BASED: Final = re.compile(r"\(?([0-9A-F]+)\)?_(?:\{\(?([0-9]+)\)?\}|([0-9]+))")
PERCENT: Final = frozenset(["percent", "percentage", "pct"])
FILLERS: Final = frozenset(
    [
        "about", "approximately", "around", "roughly", "nearly", "exactly", "only", "the", "answer", "result", "value",
        "solution", "solutions", "final", "is", "are", "so", "thus", "hence", "therefore", "then", "we", "get", "have",
        "obtain", "find", "that", "equals", "finally",
    ]
)  # fmt: skip
"""Words before an answer that say nothing."""
NO_SOLUTION: Final = frozenset(
    ["nosolution", "nosolutions", "norealsolution", "norealsolutions", "emptyset", "theemptyset", "nosolutionexists"]
)
EVERY_REAL: Final = frozenset(["allreals", "allreal", "allrealnumbers", "anyrealnumber", "allrealx", "realnumbers"])
UNDEFINED: Final = frozenset(["undefined", "doesnotexist", "dne", "doesn'texist"])
FUNCTION_LETTERS: Final = frozenset("fghpqFGHPQRSTVAEDLNCM")
QUALIFIERS: Final = frozenset(["for", "where", "with"])
QUANTITIES: Final = frozenset(
    [
        "all", "any", "every", "each", "some", "arbitrary", "integer", "integers", "constant", "constants", "real",
        "reals", "natural", "positive", "nonnegative", "non-negative", "nonzero",
    ]
)  # fmt: skip
"""Words that say what a letter of an answer stands for: `f(x) = x` for all x, k pi where k is an integer."""
INTEGERS: Final = frozenset([r"\mathbb{Z}", r"\mathbb{N}", "Z", "N", "integer", "integers"])
COORDINATES: Final = ("x", "y", "z")
COORDINATE_SET: Final = frozenset(COORDINATES)


def canonical_latex(answer: str) -> str:
    """Return a text that two answers share exactly when they count as equal.

        canonical_latex(r"\\frac{\\sqrt{8}}{4}") == canonical_latex(r"\\dfrac{1}{\\sqrt2}")

    Never raises, and takes time in proportion to the length of the answer.
    """
    return read_answer(answer).text


def agree_latex(answer: str, reference: str) -> bool:
    """Tell whether an answer is right for a reference: equal, or near enough; see the top of this file."""
    return reading.agree(read_answer(answer), read_answer(reference))


def reads_as_mathematics(answer: str) -> bool:
    """Tell whether an answer is more than words."""
    return len(answer) <= LONGEST_ANSWER and not _has_words(read_answer(answer))


def _has_words(found: Reading) -> bool:
    return found.text.startswith("text:") or any(map(_has_words, found.parts))


@lru_cache(maxsize=4096)
def read_answer(answer: str) -> Reading:
    """Read an answer; what is no mathematics becomes a reading of its text."""
    if len(answer) > LONGEST_ANSWER:
        return of_text("text:" + " ".join(answer.split()))
    cleaned = clean(answer)
    if cleaned.casefold() == "no":
        return of_text("text:no")
    tokens = tokenize(cleaned)
    found = _attempt(lambda: _structure(tokens, 0))
    if found is None and (balanced := _balanced(tokens)) != tokens:
        found = _attempt(lambda: _structure(balanced, 0))
    if found is None:
        plain = re.sub(rf"{WORD}|[{{}}\s\\]", "", "".join(tokens)).casefold()
        found = of_text("text:" + plain.strip("().,;:"))
    return found


def _balanced(tokens: list[str]) -> list[str]:
    """Leave out brackets that close nothing, and close at the end what is open."""
    kept: list[str] = []
    opened: list[str] = []
    for token in tokens:
        if token in OPENING:
            opened.append(token)
        elif token in CLOSING:
            if not opened or (OPENING[opened[-1]] != token and "}" in (OPENING[opened[-1]], token)):
                continue
            opened.pop()
        kept.append(token)
    return kept + [OPENING[token] for token in reversed(opened)]


def _split(tokens: list[str], separators: frozenset[str]) -> tuple[list[list[str]], list[str]]:
    """Split at separators outside all brackets; return the parts and the separators between them."""
    parts: list[list[str]] = [[]]
    between, open_brackets, environments = [], 0, 0
    for token in tokens:
        open_brackets += (token in OPENING) - (token in CLOSING)
        environments += token.startswith(r"\begin") - token.startswith(r"\end")
        if token in separators and open_brackets == 0 and environments == 0:
            parts.append([])
            between.append(token)
        else:
            parts[-1].append(token)
    return parts, between


def _structure(tokens: list[str], depth: int) -> Reading:
    """Read anything that an answer can be."""
    if not tokens or depth > DEEPEST_NESTING:
        raise NotMathematicsError
    if all(map(is_word, tokens)):
        return _words(tokens)
    if tokens == [r"\dots"]:
        return of_text("text:dots")
    parts, _ = _split(tokens, frozenset(["=>"]))
    if len(parts) > 1:
        return _structure(next((part for part in reversed(parts) if part), []), depth + 1)
    if clock := CLOCK.fullmatch("".join(tokens)):
        return _clock(clock, tokens)
    tokens, percent = _without_units(_without_quantity(tokens))
    if tokens[0] == r"\{" and _is_enclosed(tokens):
        return _set(tokens[1:-1], depth)
    parts, between = _split(tokens, SEPARATORS)
    if len(parts) > 1:
        return _list(parts, between, depth)
    if r"\pm" in tokens or r"\mp" in tokens:
        return of_list([_structure(_signed(tokens, sign), depth + 1) for sign in (1, -1)])
    if tokens[-2:] == ["^", "T"] and _is_enclosed(tokens[:-2]) and "," in tokens:
        tokens = tokens[:-2]  # a point written as a column
    if _is_enclosed(tokens) and (bracketed := _bracketed(tokens, depth)) is not None:
        return bracketed
    for operator in (r"\setminus", r"\cup", r"\cap"):
        parts, _ = _split(tokens, frozenset([operator]))
        if len(parts) > 1:
            return _set_operation(operator, [_structure(part, depth + 1) for part in parts])
    parts, relations = _split(tokens, RELATIONS)
    if relations:
        return _related(parts, relations, depth)
    parts, _ = _split(tokens, frozenset([":"]))
    if len(parts) > 1:
        return _proportion(parts)
    found = _expression(tokens)
    return found.also(_hundredth(found)) if percent and found.value is not None else found


def _signed(tokens: list[str], sign: int) -> list[str]:
    signs = {r"\pm": "+" if sign > 0 else "-", r"\mp": "-" if sign > 0 else "+"}
    return [signs.get(token, token) for token in tokens]


def _words(tokens: list[str]) -> Reading:
    text = "".join(token[len(WORD) :] for token in tokens).casefold()
    if text in NO_SOLUTION:
        return NOTHING
    if text in EVERY_REAL:
        return reading.of_spans([ALL_REALS])
    if (number := (SMALL | TENS).get(text)) is not None:
        return reading.of_value(residue.number(number))
    return of_text("text:undefined" if text in UNDEFINED else "text:" + text)


def _without_units(tokens: list[str]) -> tuple[list[str], bool]:
    """Drop the words after an expression, with the exponents of square and cubic units; tell percentages."""
    start = 0
    while start < len(tokens) - 1 and _is_filler(tokens[start]):
        start += 1
        start += tokens[start] == ":" and start < len(tokens) - 1
    tokens = tokens[start:]
    if is_word(tokens[0]) and tokens[0][len(WORD) :].casefold() in ("negative", "minus"):
        tokens = ["-", *tokens[1:]]
    end = len(tokens)
    percent = False
    while end > 1:
        size = _unit_size(tokens[:end])
        percent |= tokens[end - 1] == "%" or (is_word(tokens[end - 1]) and tokens[end - 1][len(WORD) :] in PERCENT)
        if not size or size >= end:
            break
        end -= size
    kept = tokens[:end]
    return (kept if not is_word(tokens[0]) or "=" in kept else tokens), percent


def _without_quantity(tokens: list[str]) -> list[str]:
    """Drop what is said of the letters of an answer, but that one of them is any integer."""
    if tokens[-5:-4] == ["("] and tokens[-1] == ")" and _is_condition(tokens[-4:-1]):
        return [*tokens[:-5], ",", *tokens[-4:-1]]
    starts = (place for place, token in enumerate(tokens) if token.removeprefix(WORD).casefold() in QUALIFIERS)
    place = min([*starts, *([tokens.index(r"\forall")] if r"\forall" in tokens else [])], default=0)
    said = [token.removeprefix(WORD).casefold() if is_word(token) else token for token in tokens[place + 1 :]]
    quantity = tokens[place] == r"\forall" or not QUANTITIES.isdisjoint(said) or r"\in" in said
    if place == 0 or not quantity or all(map(is_word, tokens[:place])):
        return tokens
    kept = tokens[: place - 1] if tokens[place - 1] == "," else tokens[:place]
    letter = next((token for token in said if len(token) == 1 and token.islower()), None)
    return [*kept, ",", letter, r"\in", r"\mathbb{Z}"] if letter and not INTEGERS.isdisjoint(said) else kept


def _is_filler(token: str) -> bool:
    return is_word(token) and token[len(WORD) :].casefold() in FILLERS


def _unit_size(tokens: list[str]) -> int:
    """How many tokens at the end are a unit, or a part of one."""
    last = tokens[-1]
    if is_word(last) or last == "%":
        return 1
    if len(tokens) > 2 and tokens[-2] in ("^", "**") and is_word(tokens[-3]):
        return 3
    if len(tokens) > 3 and tokens[-3:-1] == ["^", "-"] and is_word(tokens[-4]):
        return 4
    if last == "}":
        opening = _last_opening(tokens)
        inside = tokens[opening + 1 : -1]
        if opening > 2 and tokens[opening - 1] == "^" and is_word(tokens[opening - 2]):
            return len(tokens) - opening + 2
        if inside and all(map(is_word, inside)):
            if opening and tokens[opening - 1] == "}":  # \frac{km}{h}
                before = _last_opening(tokens[: opening - 1])
                if before and tokens[before - 1] == r"\frac" and all(map(is_word, tokens[before + 1 : opening - 1])):
                    return len(tokens) - before + 1
            return len(tokens) - opening
    if last in ("/", "*") and len(tokens) > 1 and is_word(tokens[-2]):
        return 1
    return 1 if last in ("/", "*") and len(tokens) > 2 else 0


def _last_opening(tokens: list[str]) -> int:
    """The place of the last opening brace; 0 without one."""
    return len(tokens) - 1 - tokens[::-1].index("{") if "{" in tokens else 0


def _is_enclosed(tokens: list[str]) -> bool:
    """Tell whether one pair of brackets holds everything else; those of intervals may differ."""
    if len(tokens) < 2 or tokens[0] not in OPENING or tokens[-1] not in CLOSING:
        return False
    open_brackets = 0
    for token in tokens[:-1]:
        open_brackets += (token in OPENING) - (token in CLOSING)
        if open_brackets == 0:
            return False
    return True


def _bracketed(tokens: list[str], depth: int) -> Reading | None:
    """Read a tuple or an interval, or what brackets hold."""
    inner = tokens[1:-1]
    if tokens[0] in (r"\lfloor", r"\lceil") or r"\choose" in inner or r"\over" in inner:
        return None
    parts, _ = _split(inner, frozenset([",", ";"]))
    if len(parts) == 1 or tokens[0] == "{":
        matching = OPENING[tokens[0]] == tokens[-1]
        return _structure(inner, depth + 1) if matching else None
    items = [_structure(part, depth + 1) for part in parts]
    opening, closing = (tokens[0], tokens[-1]) if len(parts) == 2 and tokens[0] != "<(" else ("(", ")")
    found = of_tuple(items, opening, closing)
    if opening == "(" and closing == ")" and tokens[0] != "[":
        return found.also(Reading("matrix", "column " + found.text, parts=tuple(items), shape="1"))
    if tokens[0] == "[" and len({(item.kind, len(item.parts)) for item in items}) == 1 and items[0].shape:
        cells = tuple(cell for item in items for cell in item.parts)  # [[1, 2], [3, 4]]
        return found.also(Reading("matrix", "rows " + found.text, parts=cells, shape=str(len(items[0].parts))))
    return found


def _set(inner: list[str], depth: int) -> Reading:
    if not inner:
        return NOTHING
    # {x | x > 2}: what follows says which.
    parts, _ = _split(inner, frozenset(["|", ":"]))
    if len(parts) == 2 and parts[0] and parts[0][0].isalpha() and (len(parts[0]) == 1 or parts[0][1] == r"\in"):
        return _structure(parts[1], depth + 1)
    parts, _ = _split(inner, frozenset([",", ";"]))
    return of_list([_structure(part, depth + 1) for part in parts if part])


def _set_operation(operator: str, operands: list[Reading]) -> Reading:
    spans = [reading.spans_of(operand) for operand in operands]
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        if operator != r"\cup":
            raise NotMathematicsError
        return of_text("union " + " ".join(sorted({operand.text for operand in operands})))
    total = list(known[0])
    for other in known[1:]:
        if operator == r"\cup":
            total += other
        elif operator == r"\cap":
            total = reading.intersection(total, other)
        elif all(span.low.text == span.high.text for span in other):
            total = reading.without_points(total, [span.low for span in other])
        else:
            raise NotMathematicsError
    return reading.of_spans(total)


def _list(parts: list[list[str]], between: list[str], depth: int) -> Reading:
    whole = {part[0]: "n" for part in parts if _is_condition(part)}  # any name will do: n \pi, n \in \mathbb{Z}
    kept = [
        [whole.get(token, token) for token in part]
        for part in parts
        if part and not _is_condition(part) and not all(map(_is_filler, part))
    ]
    if not kept:
        raise NotMathematicsError
    names = [part[0] for part in kept if len(part) > 2 and part[1] == "=" and part[0].isalpha()]
    if len(set(names)) == len(names) == len(kept) > 1:
        # x = 2, y = 3 is a point.
        named = list(zip(names, kept, strict=True))
        if all(len(name) == 1 for name in names):
            named.sort()
        items = [_structure(part[2:], depth + 1) for _, part in named]
        return of_tuple(items).also(of_list(items))
    items = [_structure(part, depth + 1) for part in kept]
    if any(COMPARISONS.intersection(part) for part in kept) and (joined := _joined(kept, items, between)) is not None:
        return joined
    found = of_list(items)
    return found.also(of_tuple(items)) if len(items) > 1 and found.kind == "list" else found


def _is_condition(tokens: list[str]) -> bool:
    """Tell what is said of a variable beside an answer: `k \\in \\mathbb{Z}`."""
    return len(tokens) == 3 and tokens[1] == r"\in" and tokens[2] in INTEGERS


def _joined(parts: list[list[str]], items: list[Reading], between: list[str]) -> Reading | None:
    """Inequalities beside each other: both hold, or one of them does where they exclude each other; None for others."""
    spans = []
    for number, (part, item) in enumerate(zip(parts, items, strict=True)):
        if number and "!=" in parts[0] and item.kind == "value" and not COMPARISONS.intersection(part):  # x \ne 1, 2
            item = _set_operation(r"\setminus", [reading.of_spans([ALL_REALS]), item])
        found = reading.spans_of(item)
        if found is None:
            return None
        spans.append(found)
    together = list(spans[0])
    for other in spans[1:]:
        together = reading.intersection(together, other)
    if r"\lor" in between or not together:
        return reading.of_spans([span for each in spans for span in each])
    return reading.of_spans(together)


def _related(parts: list[list[str]], relations: list[str], depth: int) -> Reading:
    """Read equations and inequalities."""
    if relations == [r"\in"]:
        return _structure(parts[1], depth + 1)
    if set(relations) <= {"=", r"\approx", r"\equiv"}:
        return _chain(parts, relations, depth)
    if not set(relations) <= COMPARISONS:
        raise NotMathematicsError
    return _inequality(parts, relations)


def _chain(parts: list[list[str]], relations: list[str], depth: int) -> Reading:
    """Read equations: a = b, a = b = c, and a = b \\approx c, where b is exact."""
    if r"\approx" in relations[1:] or (r"\approx" in relations and not _is_name(parts[0])):
        exact = relations.index(r"\approx") + 1
        if exact > 1 or not _is_name(parts[0]):
            found = (
                _chain(parts[:exact], relations[: exact - 1], depth) if exact > 1 else _structure(parts[0], depth + 1)
            )
            return found.also(_structure(parts[-1], depth + 1))
    if len(parts) == 2:
        return _equation(parts[0], parts[1], depth)
    result = next((part for part in reversed(parts) if part and not _is_name(part)), parts[-1])
    return _structure(result, depth + 1)


def _equation(left: list[str], right: list[str], depth: int) -> Reading:
    sides = [_tree(left), _tree(right)]
    trees = [tree for tree in sides if tree is not None]
    names = frozenset[str]().union(*map(names_in, trees))
    same = None
    if len(trees) == 2:
        difference = Node("sum", (trees[0], Node("negative", (trees[1],))))
        # Equal up to a factor: the ratio of the difference at two points does not see the factor.
        same = _attempt(lambda: of_text("equation " + (number_of(difference) / number_of(difference, "'")).text()))
        computed = not names_in(trees[1]) and (len(names) > 1 or _is_measured(trees[0]))
        result = _value(right) if _is_name(left) or computed else None
        result = None if result is None or result.text == "0" else result
        if len(names) > 1 and names <= COORDINATE_SET:
            solved = _solution(difference, max(names))
            return _also(solved or same, same, result)
    for name, other in ((left, right), (right, left)):
        if _is_name(name) and not (len(name) == 1 and name[0] in other):
            return _also(_structure(other, depth + 1), same)
    if sides[0] is None or not names_in(sides[0]):
        return _also(_structure(right, depth + 1), same)
    if sides[1] is None:
        raise NotMathematicsError
    solved = _solution(difference, *names) if len(names) == 1 else None
    return _also(solved or same, same, result)


def _is_measured(tree: Node) -> bool:
    """Tell whether variables are within functions only, so that an equation says their value: `\\cos A = 1/3`."""
    return tree.kind in ("call", "absolute") or (tree.kind != "name" and all(map(_is_measured, tree.parts)))


def _also(found: Reading | None, *others: Reading | None) -> Reading:
    if found is None:
        raise NoValueError
    return found.also(*(other for other in others if other is not None))


def _attempt(read: Callable[[], Reading]) -> Reading | None:
    try:
        return read()
    except (NotMathematicsError, NoValueError, ArithmeticError):  # sizes beyond floating-point numbers
        return None


def _value(tokens: list[str]) -> Reading | None:
    return _attempt(lambda: _expression(tokens))


def _tree(tokens: list[str]) -> Node | None:
    try:
        return read_expression(tokens)
    except NotMathematicsError:
        return None


def _solution(difference: Node, name: str) -> Reading | None:
    """Where a difference that is linear in a variable is zero; None for others."""
    try:
        root, _ = _linear_root(difference, name)
    except NoValueError:
        return None
    return reading.of_value(root)


def _linear_root(difference: Node, name: str) -> tuple[Residue, Residue]:
    """Where a difference is zero, and its slope in a variable; `NoValueError` unless it is linear in it."""
    places = [residue.symbol(f"place {number}") for number in range(3)]
    values = [number_of(difference, given={name: place}) for place in places]
    slope = (values[1] - values[0]) / (places[1] - places[0])
    again = (values[2] - values[0]) / (places[2] - places[0])
    if not residue.same(slope, again) or residue.same(slope, residue.ZERO):
        raise NoValueError
    return places[0] - values[0] / slope, slope


def _inequality(parts: list[list[str]], relations: list[str]) -> Reading:
    """Read inequalities in one variable as the reals that fulfil them, others as what has to be positive."""
    directions = {relation[0] for relation in relations} - {"!"}
    if len(directions) > 1:
        raise NotMathematicsError
    trees = [_tree(part) for part in parts]
    for place, part in enumerate(parts):
        if trees[place] is None or (len(parts[place]) > 1 and _is_name(part)):
            if not _is_name(part):
                raise NotMathematicsError
            trees[place] = Node("name", text="named")
    known = [tree for tree in trees if tree is not None]
    names = frozenset[str]().union(*map(names_in, known))
    alone = [tree.text for tree in known if tree.kind == "name"]
    spans = [ALL_REALS]
    for place, relation in enumerate(relations):
        left, right = known[place], known[place + 1]
        if len(names) == 1:
            name = next(iter(names))
        elif alone and not names <= COORDINATE_SET and sum(alone[0] in names_in(tree) for tree in known) == 1:
            name = alone[0]
        elif len(relations) == 1 and relation != "!=":
            return _positive(left, right, relation)
        else:
            raise NotMathematicsError
        fulfilled = _fulfilled(left, right, relation, name)
        spans = fulfilled if spans == [ALL_REALS] else reading.intersection(spans, fulfilled)
    return reading.of_spans(spans)


def _fulfilled(left: Node, right: Node, relation: str, name: str) -> list[Span]:
    """The reals at which a relation holds, which is linear in the variable."""
    if name not in names_in(left) | names_in(right):
        raise NotMathematicsError
    if right.kind in ("name", "absolute") and left.kind != "name":
        left, right, relation = right, left, relation.translate(str.maketrans("<>", "><"))
    if left.kind == "absolute" and name not in names_in(right):
        (inner,) = left.parts
        below = _fulfilled(inner, right, relation, name)
        above = _fulfilled(inner, Node("negative", (right,)), relation.translate(str.maketrans("<>", "><")), name)
        return reading.intersection(below, above) if relation.startswith("<") else [*below, *above]
    if left == Node("name", text=name):
        root, rising = number_of(right), True
    else:
        root, slope = _linear_root(Node("sum", (left, Node("negative", (right,)))), name)
        rising = residue.float_of(slope) > 0
    end = reading.of_value(root)
    if relation == "!=":
        return reading.without_points([ALL_REALS], [end])
    closed = relation.endswith("=")
    if relation.startswith(">") == rising:
        return [Span(end, GREATEST, (closed, False))] if end.text != LEAST.text else [ALL_REALS]
    return [Span(LEAST, end, (False, closed))] if end.text != GREATEST.text else [ALL_REALS]


def _positive(left: Node, right: Node, relation: str) -> Reading:
    """Read an inequality in several variables: what is positive, up to a positive factor."""
    if relation.startswith("<"):
        left, right = right, left
    difference = Node("sum", (left, Node("negative", (right,))))
    here, there = number_of(difference), number_of(difference, "'")
    sign = "+" if residue.float_of(here) > 0 else "-"
    return of_text(f"positive{relation[1:]} {sign} {(here / there).text()}")


def _is_name(tokens: list[str]) -> bool:
    """Tell whether this is what a result is called: `x`, `x_1`, `f(2)`, `\\theta`, `AB`, `\\angle ABC`, words."""
    if not tokens or is_word(tokens[0]):
        return True
    if tokens[0] == "{" and _is_enclosed(tokens):
        return _is_name(tokens[1:-1])
    joined = "".join(tokens)
    if re.fullmatch(r"(?:\\overline|\\bar)\{?[a-zA-Z]\}?", joined):
        return True
    if re.fullmatch(r"(?:m?\\(?:angle|triangle)|\\overline|\\bar)?\{?[A-Z](?:'?[A-Z]'?){0,4}\}?'?", joined) and (
        len(tokens) > 1
    ):
        return True
    if re.fullmatch(r"\[[A-Z]{3,6}\]|\|[A-Z]{2}\||m?\\angle[A-Za-z0-9]|\\Delta[A-Z]{3}", joined):
        return True
    if re.fullmatch(r"\\frac\{?d[a-z]?\}?\{?d[a-z]\}?(?:.*)", joined):
        return True
    if tokens[0] == "(" and re.fullmatch(r"\([a-zA-Z](?:,[a-zA-Z]|,\\[a-z]+)+\)", joined):
        return True
    first = tokens[0]
    if not (len(first) == 1 and first.isalpha()) and first not in GREEK:
        return False
    rest = re.sub(
        r"^(?:_(?:[a-zA-Z0-9]|[0-9]+|\{[^{}]*\}))?'*(?:\^\{(?:-1|\([0-9n]\)|'+)\})?'*", "", joined[len(first) :]
    )
    if not rest:
        return True
    called = rest[0] + rest[-1] in ("()", "[]") and _is_enclosed(
        tokens[-len(rest) :] if len(rest) < len(tokens) else tokens[1:]
    )
    return called and (first in FUNCTION_LETTERS or re.fullmatch(r"\((?:[a-zA-Z]|-?[0-9]+)\)", rest) is not None)


def _clock(clock: re.Match[str], tokens: list[str]) -> Reading:
    """Read a time of day; without a half of the day it may be meant as either, or as a ratio."""
    hour, rest, half = int(clock[1]), clock[2] + (":" + clock[3] if clock[3] else ""), clock[4]
    if half:
        return of_text(f"clock {hour}:{rest} {half}")
    parts, _ = _split(tokens, frozenset([":"]))
    halves = ["pm"] if hour > 12 else ["am", "pm"]
    meant = [of_text(f"clock {hour - 12 if hour > 12 else hour}:{rest} {half}") for half in halves]
    return _also(of_text(f"clock {hour}:{rest}"), *meant, _attempt(lambda: _proportion(parts)))


def _proportion(parts: list[list[str]]) -> Reading:
    values = [number_of(read_expression(part)) for part in parts]
    if any(residue.same(value, residue.ZERO) for value in values):
        raise NotMathematicsError
    return of_text("ratio " + " ".join((value / values[0]).text() for value in values))


def _expression(tokens: list[str]) -> Reading:
    if tokens == [r"\emptyset"]:
        return NOTHING
    if tokens == [r"\mathbb{R}"]:
        return reading.of_spans([ALL_REALS])
    parts, between = _split(tokens, frozenset([r"\pmod"]))
    if between and len(parts) == 2 and parts[0]:
        value, divisor = number_of(read_expression(parts[0])), number_of(read_expression(parts[1]))
        return _residue_class(value, divisor)
    if based := BASED.fullmatch("".join(tokens)):
        digits, base = based[1].lstrip("0") or "0", based[2] or based[3]
        if base == "10" and digits.isdigit():
            return reading.of_value(residue.number(int(digits)))
        return of_text(f"base {base}: {digits}")
    tree = read_expression(tokens)
    found_value = value_of(tree)
    if isinstance(found_value, Matrix):
        return _matrix(found_value)
    found = reading.of_value(found_value, _decimals(tokens))
    if tree.kind == "degrees" or (tree.kind == "negative" and tree.parts[0].kind == "degrees"):
        return found.also(reading.of_value(found_value * residue.PI / residue.number(180)))
    option = tokens[:3]
    if len(tokens) > 3 and option[0] == "(" and option[1] in tuple("ABCDE") and option[2] == ")":
        return found.also(*filter(None, [_number_reading(option), _number_reading(tokens[3:])]))
    return found


def _number_reading(tokens: list[str]) -> Reading | None:
    return _attempt(lambda: reading.of_value(number_of(read_expression(tokens))))


def _residue_class(value: Residue, divisor: Residue) -> Reading:
    number, by = value.rational(), divisor.rational()
    if number is None or by is None:
        return of_text(f"{value.text()} modulo {divisor.text()}").also(reading.of_value(value))
    if by == 0:
        raise NoValueError
    return of_text(f"{number % by} modulo {by}").also(reading.of_value(value))


def _matrix(value: Matrix) -> Reading:
    rows, columns = value.shape
    cells = [reading.of_value(cell) for row in value.rows for cell in row]
    text = "matrix " + "; ".join(", ".join(cell.text() for cell in row) for row in value.rows)
    found = Reading("matrix", text, parts=tuple(cells), shape=str(columns))
    return found.also(of_tuple(cells)) if 1 in (rows, columns) and rows * columns > 1 else found


def _decimals(tokens: list[str]) -> int | None:
    """Digits after the point of a written decimal: 2 of -0.25, 3 of 2.5 \\times 10^{-2}; None for other expressions."""
    match = re.fullmatch(
        r"[-+]?\(?([0-9]*\.[0-9]+|[0-9]+\.?[0-9]*[eE][-+]?[0-9]+|[0-9]+)(?:\*10\^\{?(-?[0-9]{1,3})\}?)?\)?[°%]?",
        "".join(tokens),
    )
    if match is None or not ("." in match[1] or "e" in match[1].lower()):
        return None
    plain_number(match[1])
    mantissa, _, exponent = match[1].lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0) - int(match[2] or 0)


def _hundredth(found: Reading) -> Reading:
    assert found.value is not None
    decimals = None if found.decimals is None else found.decimals + 2
    return reading.of_value(found.value / residue.number(100), decimals)
