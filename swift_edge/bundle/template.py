"""The chat template: a program from elsewhere, run in jinja2's sandbox, with an end to its time and its memory.

The sandbox keeps a template from the machine; it lets one count to a hundred billion. So all that a template does is
counted: each turn of a loop and each call of a macro by the size of its body, each value that is made, compared or
looked through by its own size, before that is done. The count depends on the template and the messages alone, so that
what renders on one machine renders on every other, however busy. jinja2 is imported with this module, which is
therefore imported when the first template is needed.
"""

import datetime
import functools
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from string import Formatter
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from swift_edge.bundle.manifest import TEMPLATE_BYTES
from swift_edge.errors import TemplateError, one_line

# What a template gets that insists on today's date: a prompt must not change from one day to the next.
FIXED_DATE: Final = datetime.datetime(2024, 7, 26)

MOST_STEPS: Final = 1_000_000
"""Nodes of the template to run and elements to look at: about a second's work."""
STEPS_PER_MESSAGE: Final = 3000
"""Further steps for every message; long templates have a thousand nodes, and look at messages more than once."""
MOST_CHARACTERS: Final = 16 * 2**20
"""Characters to write, compare and look through."""
CHARACTERS_PER_CHARACTER: Final = 64
"""Further ones for every character of the messages."""
MOST_DEPTH: Final = 100
"""Lists within lists: comparing and writing them takes a stack."""
MOST_BITS: Final = 4096
"""Bits of a whole number."""
MOST_WIDTH: Final = 1000
"""Greatest width, or number of decimals, or of columns, that can be asked for."""
MOST_INDENT: Final = 16
"""Greatest indentation of JSON."""

_METHODS: Final[Mapping[type, frozenset[str]]] = {
    str: frozenset(
        {
            *("capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index"),
            *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric"),
            *("isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition"),
            *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit"),
            *("rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill"),
        }
    ),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index"}),
    datetime.datetime: frozenset({"strftime"}),
}
"""The methods of Python's own types that may be called: those whose work and result are bounded below."""
_PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill"})
_SPLITTING: Final = frozenset({"split", "rsplit", "splitlines"})

_AT_ONCE: Final = frozenset({"count", "d", "default", "first", "last", "length"})
"""Filters that take no longer for a long value than for a short one."""
_ONE_BY_ONE: Final = frozenset(
    {"batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "unique"}
)
"""Filters that go through a value, most of them while their result is gone through."""
_COMPARING: Final = frozenset({"dictsort", "groupby", "max", "min", "sort", "unique"})
"""Filters that compare elements with each other, about `COMPARISONS` times each."""
COMPARISONS: Final = 20
_JOINING: Final = frozenset({"groupby", "join", "max", "min", "sort", "sum"})
"""Filters that take all elements of a value at once."""
_WIDENING: Final = frozenset({"batch", "center", "indent", "round", "slice"})
"""Filters whose numbers say how much is added."""
_WRITING: Final = frozenset(
    {
        *("abs", "attr", "capitalize", "e", "escape", "float", "format", "int", "lower", "replace", "safe"),
        *("string", "title", "tojson", "trim", "truncate", "upper", "urlencode", "wordcount"),
    }
)
"""Filters that make something of a whole value."""

# Names that are no words of templates.
_STEPS, _WHOLE, _SEARCHED, _OUTSIDE = "(steps)", "(whole)", "(searched)", "(outside)"

_IMPLICIT: Final = frozenset({"_loop_vars", "_block_vars", "caller"})
"""Keywords that compiled templates add to calls."""


class ChatTemplate:
    """A template that is compiled once and rendered for many prompts, by any number of threads.

    >>> ChatTemplate("{{ messages[0].content }}", Path("models/x")).render({"messages": messages})
    """

    def __init__(self, source: str, path: Path) -> None:
        """Compile it; `path` is the bundle's, for messages. Raises `TemplateError` where that is not possible."""
        self._path = path
        if len(source) > TEMPLATE_BYTES:  # a file of so many bytes has no more characters
            raise self._error(f"has {len(source)} characters; expected at most {TEMPLATE_BYTES}")
        try:
            with _counted(Meter()):
                self._template = _Sandbox().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(f"does not parse (line {error.lineno}: {error.message})") from error
        # Nested without end, or with a number of thousands of digits.
        except Exception as error:
            raise self._error(f"does not parse ({_described(error)})") from error

    def render(self, values: Mapping[str, Any]) -> str:
        """Write the messages among `values` as the template says.

        Raises `TemplateError` where the template refuses them, fails, or does not come to an end in bounds.
        """
        messages = values["messages"]
        try:
            characters = sum(len(str(text)) for message in messages for text in message.values())
            with _counted(Meter(len(messages), characters)):
                try:
                    return self._template.render(values)
                except jinja2.UndefinedError as error:
                    # Left undefined at first, because templates that ask for it politely have a date of their own.
                    if "strftime_now" not in str(error):
                        raise
                    return self._template.render(values, strftime_now=FIXED_DATE.strftime)
        except _RefusalError as error:
            raise TemplateError(
                f"the chat template refuses the messages: {one_line(error)}; change the messages"
            ) from None
        except _LimitError as error:
            raise self._error(str(error)) from None
        # A template is a program from elsewhere and may fail in any way.
        except Exception as error:
            raise TemplateError(
                f"the chat template of {self._path} failed ({_described(error)}); "
                "change the messages, or repair the template and export the bundle again"
            ) from error

    def _error(self, what: str) -> TemplateError:
        return TemplateError(f"the chat template of {self._path} {what}; repair it and export the bundle again")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


class _RefusalError(Exception):
    """A template called raise_exception."""


class _LimitError(Exception):
    """A template does more than it may."""


class Meter:
    """What one rendering has done so far, and the most that it may do."""

    def __init__(self, messages: int = 0, characters: int = 0) -> None:
        """Allow for so many messages, and so many characters in them."""
        self._most_steps = self._steps_left = MOST_STEPS + STEPS_PER_MESSAGE * messages + characters
        self._most_characters = self._characters_left = MOST_CHARACTERS + CHARACTERS_PER_CHARACTER * characters

    def step(self, count: int = 1) -> None:
        """Count steps that are about to be made."""
        self._steps_left -= count
        if self._steps_left < 0:
            raise _LimitError(f"takes more than {self._most_steps} steps")

    def write(self, count: int) -> None:
        """Count characters that are about to be written, compared or looked through."""
        self._characters_left -= count
        if self._characters_left < 0:
            raise _LimitError(f"handles more than {self._most_characters} characters")

    def outside(self, value: object) -> int:
        """Count a value without what its elements hold; returns its length."""
        if isinstance(value, str):
            self.write(len(value))
        elif isinstance(value, Sized) and not isinstance(value, jinja2.Undefined):
            self.step(len(value))
        else:
            return 1
        return len(value)

    def whole(self, value: object) -> int:
        """Count a value with all that it holds; returns about how many characters it has when it is written.

        A list that holds another one twice, which holds a third one twice, is counted as often as it would be written.
        """
        if isinstance(value, str):
            self.write(len(value))
            return len(value)
        characters = 0
        levels: list[Iterator[Any]] = [iter((value,))]
        while levels:
            for each in levels[-1]:
                self.step()
                characters += 6
                if isinstance(each, str):
                    characters += len(each)
                    self.write(len(each))
                elif isinstance(each, _CONTAINERS):
                    if len(levels) > MOST_DEPTH:
                        raise _LimitError(f"nests values more than {MOST_DEPTH} deep")
                    levels.append(_elements(each))
                    break
                else:
                    characters += 20
                    _require_bits(each)
            else:
                levels.pop()
        self.write(characters)
        return characters

    def counted(self, iterator: Iterator[Any], cost: int) -> Iterator[Any]:
        """The same iterator, each element of which is counted."""
        for each in iterator:
            self.step(cost)
            yield each


_CONTAINERS: Final = (dict, list, tuple, set, frozenset, range, MappingView, Namespace)


def _elements(value: Any) -> Iterator[Any]:
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")  # it has no other door, and writes them out
    if isinstance(value, dict):
        return (each for pair in value.items() for each in pair)
    return iter(value)


def _require_bits(*values: object) -> None:
    """Refuse whole numbers that take long to compute with."""
    if any(isinstance(value, int) and value.bit_length() > MOST_BITS for value in values):
        raise _LimitError(f"computes with a number of more than {MOST_BITS} bits")


_METER: Final[ContextVar[Meter]] = ContextVar("the meter of the template that is being rendered")


@contextmanager
def _counted(meter: Meter) -> Iterator[None]:
    """Count by this meter."""
    token = _METER.set(meter)
    try:
        yield
    finally:
        _METER.reset(token)


def _integer(value: object) -> int:
    """A whole number, as none but these make widths; 0 for anything else."""
    return abs(value) if isinstance(value, int) and not isinstance(value, bool) else 0


def _require_width(*values: object) -> int:
    """Refuse widths that nobody needs; returns the sum."""
    for value in values:
        if _integer(value) > MOST_WIDTH:
            raise _LimitError(f"asks for a width of more than {MOST_WIDTH}")
    return sum(map(_integer, values))


def _check_percent(form: str, arguments: object) -> None:
    """Count what `form % arguments` writes."""
    for width in re.findall(r"%[^a-zA-Z%]*", form):
        if "*" in width:
            raise _LimitError("takes a width from a value")
        _require_width(*map(int, re.findall(r"[0-9]{1,9}", width)))
    meter = _METER.get()
    meter.write(len(form) + form.count("%") * (MOST_WIDTH + meter.whole(arguments)))


def _check_format(form: str, arguments: object) -> None:
    """Count what `form.format(*arguments)` writes."""
    for _, name, spec, _ in Formatter().parse(form):
        if "{" in (spec or ""):
            raise _LimitError("takes a width from a value")
        _require_width(*map(int, re.findall(r"[0-9]{1,9}", spec or "")))
        _METER.get().step(len(name or "") + 1)
    meter = _METER.get()
    meter.write(len(form) + form.count("{") * (MOST_WIDTH + meter.whole(arguments)))


class _GenerationBlocks(Extension):
    """Take `{% generation %}` blocks, which mark answers for training, as if the marks were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Give the statements of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counting(NodeTransformer):
    """Puts the counting into a template: where it repeats something, and around what the sandbox does not see."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Change a node, once all that is in it has been changed."""
        self.generic_visit(node, *args, **kwargs)
        match node:
            case nodes.For() | nodes.Macro() | nodes.CallBlock() | nodes.Block():
                steps = _counting(1 + sum(map(_size, node.body)), node.lineno)
                node.body = [nodes.ExprStmt(steps, lineno=node.lineno), *node.body]
                if isinstance(node, nodes.For) and node.test is not None:  # turns that are left out
                    node.test = nodes.And(_counting(1 + _size(node.test), node.lineno), node.test, lineno=node.lineno)
            case nodes.Compare():
                node.expr = _filtered(node.expr, _WHOLE)
                for operand in node.ops:
                    operand.expr = _filtered(operand.expr, _SEARCHED if operand.op in ("in", "notin") else _WHOLE)
            case nodes.Concat():
                node.nodes = [_filtered(each, _WHOLE) for each in node.nodes]
            case nodes.Getitem(arg=nodes.Slice()):
                node.node = _filtered(node.node, _OUTSIDE)
            case nodes.Getitem():  # the key is hashed
                node.arg = _filtered(node.arg, _WHOLE)
            case nodes.Pair():
                node.key = _filtered(node.key, _WHOLE)
        return node


def _size(node: nodes.Node) -> int:
    """Nodes of a part of a template."""
    return 1 + sum(map(_size, node.iter_child_nodes()))


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    """A node whose value goes through a filter first; a constant is no longer than the template."""
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _counting(steps: int, line: int) -> nodes.Expr:
    """A node that counts steps, and is true."""
    return nodes.Filter(nodes.Const(steps, lineno=line), _STEPS, [], [], None, None, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox that counts; `_METER` holds the meter of the template that is being rendered."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlocks],
            finalize=_whole,
            optimized=False,
        )
        self.globals["raise_exception"] = _raise_exception
        del self.globals["lipsum"]
        kept = sorted(_AT_ONCE | _ONE_BY_ONE | _COMPARING | _JOINING | _WIDENING | _WRITING)
        self.filters = {name: _counting_filter(name, FILTERS[name]) for name in kept if name in FILTERS}
        self.filters["tojson"] = _to_json
        self.filters |= {_STEPS: _step, _WHOLE: _whole, _SEARCHED: _searched, _OUTSIDE: _outside}
        self.tests = {name: _counting_test(test) for name, test in TESTS.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of a text, each of which is counted before the next one is made."""
        meter, pieces = _METER.get(), []
        for part in parts:
            meter.write(len(part))
            pieces.append(part)
        return "".join(pieces)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Count what an operator makes."""
        meter = _METER.get()
        _require_bits(left, right)
        if isinstance(left, int) and isinstance(right, int):
            if operator == "**" and left.bit_length() * right > MOST_BITS:
                raise _LimitError(f"computes a number of more than {MOST_BITS} bits")
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str) and isinstance(times, int):
                    meter.write(len(sequence) * max(0, times))
                elif isinstance(sequence, Sized) and isinstance(times, int):
                    meter.step(len(sequence) * max(0, times))
        elif operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        elif operator == "+":
            meter.outside(left)
            meter.outside(right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        """Count what `format` and `format_map` write."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def counted(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (args, kwargs))
            return str(safe(*args, **kwargs))  # Markup needs no mark: nothing is escaped unless a template asks for it

        return counted

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Count a call, and what a method of Python's own types does."""
        given = [*args, *(value for name, value in kwargs.items() if name not in _IMPLICIT)]
        owner = getattr(__obj, "__self__", None)
        meter = _METER.get()
        meter.step(1 + len(given))
        if not isinstance(__obj, (types.BuiltinMethodType, types.MethodType)):
            for value in given:
                meter.outside(value)
        elif type(owner).__module__.startswith("jinja2"):  # a loop compares what it is given
            for value in given:
                meter.whole(value)
        else:
            given = _check_method(owner, __obj.__name__, given)
            args = (*given[: len(args)],)
        return super().call(__context, __obj, *args, **kwargs)


def _check_method(owner: Any, name: str, given: Sequence[Any]) -> list[Any]:
    """Count what a method does; returns its arguments, those that could be gone through only once as lists."""
    allowed = next((names for kind, names in _METHODS.items() if isinstance(owner, kind)), frozenset[str]())
    if name not in allowed:
        raise _LimitError(f"calls {name} of {type(owner).__name__}, which chat templates may not")
    meter = _METER.get()
    if not isinstance(owner, str):
        if name in ("count", "index"):
            meter.whole(owner)
        elif name == "copy":
            meter.outside(owner)
        for value in given:
            meter.whole(value)
        return list(given)
    if name == "join":
        parts = [each if isinstance(each, (str, list, tuple)) else list(each) for each in given]
        meter.write(sum(len(owner) * len(part) + meter.whole(part) for part in parts))
        return parts
    looked_for = sum(map(meter.whole, given))
    # Searching for a long text from behind, and stripping one of many characters, takes the product.
    meter.write(len(owner) * (1 + looked_for // 64))
    if name == "replace" and len(given) > 1 and all(isinstance(text, str) for text in given[:2]):
        meter.write(owner.count(given[0]) * len(given[1]))
    elif name in _PADDING:
        meter.write(_require_width(*given))
    elif name in _SPLITTING:
        separator = given[0] if given and isinstance(given[0], str) and given[0] else None
        pieces = len(owner) // 2 if separator is None or name == "splitlines" else owner.count(separator)
        meter.step(1 + pieces)
    return list(given)


def _counting_filter(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts what it does."""
    place = int(hasattr(call, "jinja_pass_arg"))

    @functools.wraps(call)  # with the mark that says what it wants passed
    def counted(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        if len(args) <= place or name in _AT_ONCE:
            return call(*args, **kwargs)
        value, given = args[place], [*args[place + 1 :], *kwargs.values()]
        if name in _JOINING and isinstance(value, Iterator):
            value = list(value)
            args = (*args[:place], value, *args[place + 1 :])
        factor = 1 + sum(map(meter.whole, given)) // 4
        if name in _WIDENING:
            factor += _require_width(*given)
        if name in _ONE_BY_ONE:
            meter.step(factor * meter.outside(value) if name != "unique" else COMPARISONS * meter.whole(value))
        elif name == "format":
            _check_percent(str(value), tuple(given))
        else:
            meter.write(factor * (COMPARISONS if name in _COMPARING else 6) * meter.whole(value))
        start = dict(enumerate(args[place:])).get(2, kwargs.get("start"))
        if name == "sum" and isinstance(start, Sized):
            raise _LimitError("adds lists up, which takes the square of their number")
        made = call(*args, **kwargs)
        return meter.counted(made, factor) if isinstance(made, Iterator) else made

    return counted


def _counting_test(test: Any) -> Callable[..., Any]:
    """A test that counts what it looks at."""

    @functools.wraps(test)
    def counted(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.step()
        if len(args) == 1:
            meter.write(len(args[0]) if isinstance(args[0], str) else 0)
        for value in args[:-1]:
            meter.whole(value)
        if len(args) > 1:
            _searched(args[-1])
        return test(*args, **kwargs)

    return counted


def _step(count: int) -> bool:
    _METER.get().step(abs(count))  # a template may spell the name after all, in a text for `map`
    return True


def _whole(value: Any) -> Any:
    _METER.get().whole(value)
    return value


def _outside(value: Any) -> Any:
    _METER.get().outside(value)
    return value


def _searched(value: Any) -> Any:
    return value if isinstance(value, dict) else _whole(value)


def _raise_exception(message: str) -> NoReturn:
    _METER.get().whole(message)
    raise _RefusalError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON; jinja2's own filter escapes for HTML."""
    meter = _METER.get()
    if _integer(indent) > MOST_INDENT or isinstance(indent, str) or meter.whole(separators) > 100:
        raise _LimitError(f"indents JSON by more than {MOST_INDENT}, or by a text")
    characters = meter.whole(value)
    meter.write((6 + _integer(indent) * _depth(value)) * characters)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _depth(value: Any) -> int:
    """How deep values are nested; they have been counted, so that this comes to an end."""
    if not isinstance(value, (dict, list, tuple)):
        return 0
    return 1 + max(map(_depth, _elements(value)), default=0)
