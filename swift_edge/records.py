"""JSON documents to dataclasses: one reader for manifests, heads and stores, so that all say alike what is wrong.

The annotations of a dataclass are the format: `int`, `float`, `FloatOrNull`, `str`, `bool`, `Any`, `Literal`,
`X | None`, `tuple[X, ...]`, `Mapping[str, X]`, `Mapping[int, X]` (whose numbers JSON has as texts), and dataclasses.
Names that a dataclass does not have are passed over, so that a later version may add some.
"""

import json
import math
import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

Record = TypeVar("Record")

FloatOrNull: TypeAlias = Annotated[float, "null in JSON, which has neither NaN nor infinity"]
"""A number that is NaN where the document says null; `finite_or_none` is the way back."""


class RecordError(ValueError):
    """A document is not what the fields say: the text names the place, what was found and what was expected."""


def read_record(document: Any, kind: type[Record]) -> Record:
    """Make a dataclass from a JSON object; raises `RecordError`, or what the dataclass raises itself.

    A field may be missing if its default says that there is nothing: None, or an empty mapping.
    """
    return kind(**read_fields(document, kind))


def read_fields(
    document: Any, kind: type, names: Collection[str] | None = None, *, optional: Collection[str] = (), where: str = ""
) -> dict[str, Any]:
    """Read the fields `names` of a dataclass, all of them by default, from a JSON object, as `read_record` does.

    Those that are `optional` may be missing, too; what is missing is left out. `where` says in messages where the
    object stands in its document.
    """
    if not isinstance(document, dict):
        raise RecordError(_wrong(where or "the document", document, "an object"))
    values = {}
    for name, (annotation, empty_by_default) in _fields_of(kind).items():
        if names is not None and name not in names:
            continue
        place = f"{where}.{name}" if where else name
        if name in document:
            values[name] = read_value(document[name], annotation, place)
        elif not empty_by_default and name not in optional:
            raise RecordError(f"{place} is missing; expected {described(annotation)}")
    return values


def read_value(value: Any, annotation: Any, where: str) -> Any:
    """Turn a JSON value into the annotated type; raises `RecordError`, whose text begins with `where`."""
    if annotation in _PLAIN:
        _expect(_PLAIN[annotation](value), where, value, annotation)
        if annotation is int and not -(2**63) <= value < 2**64:
            raise RecordError(_wrong(where, value, "an integer of at most 64 bits"))
        return value
    if annotation is Any:
        return value
    if annotation == FloatOrNull:
        return math.nan if value is None else _float(value, where)
    if annotation is float:
        return _float(value, where)
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind in (Union, types.UnionType):  # always `X | None` here
        return None if value is None else read_value(value, arguments[0], where)
    if kind is Literal:
        _expect(value in arguments, where, value, annotation)
        return value
    if kind is tuple:
        _expect(isinstance(value, list), where, value, annotation)
        # A response has thousands of tokens: their places are worked out only where one is wrong.
        if arguments[0] is int and all(type(item) is int for item in value):
            for item in (min(value), max(value)) if value else ():
                read_value(item, int, where)
            return tuple(value)
        if arguments[0] == FloatOrNull and all(item is None or type(item) is float for item in value):
            return tuple(math.nan if item is None else item for item in value)
        return tuple(read_value(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value))
    if is_dataclass(annotation):
        assert isinstance(annotation, type)
        return annotation(**read_fields(value, annotation, where=where))
    _expect(isinstance(value, dict), where, value, annotation)
    by_number = arguments[0] is int
    _expect(not by_number or all(_WHOLE.fullmatch(name) for name in value), where, value, annotation)
    return {
        int(name) if by_number else name: read_value(item, arguments[1], f"{where}.{name}")
        for name, item in value.items()
    }


def shown(value: object) -> str:
    """A value as messages show it: as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def described(annotation: Any) -> str:
    """What messages expect of a value: `described(int)` is `"an integer"`."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind in (Union, types.UnionType):
        return f"{described(arguments[0])}, or null"
    if kind is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if kind is tuple:
        return "a list"
    if kind is not None and arguments[0] is int:
        return "an object whose names are whole numbers"
    names = {int: "an integer", float: "a number", FloatOrNull: "a number", str: "a string", bool: "true or false"}
    return names.get(annotation, "an object")


def json_text(document: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Write plain data and NumPy's as JSON that `system.documents` reads, without a line end.

    Numbers that JSON does not have are null; half characters, as in names of files that are no text, are `?`. Raises
    `TypeError` for what JSON has no form for.
    """
    return json.dumps(_plain(document), indent=indent, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)


def finite_or_none(number: float) -> float | None:
    """A number as JSON has it: NaN and infinity, as a token of probability zero gives, are null there."""
    return number if math.isfinite(number) else None


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Mapping):
        return {_plain(name) if isinstance(name, str) else name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    return value


@cache
def _fields_of(kind: type) -> dict[str, tuple[Any, bool]]:
    """Fields of a dataclass: what they hold, and whether they hold nothing by default."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        each.name: (hints[each.name], each.default is None or each.default_factory is dict) for each in fields(kind)
    }


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_WHOLE: Final = re.compile("0|[1-9][0-9]{0,17}")
"""Names that stand for whole numbers, each in one way."""

_PLAIN: Final[dict[Any, Callable[[object], bool]]] = {
    int: _is_integer,
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
}
"""Types whose values are taken over as they are."""


def _float(value: Any, where: str) -> float:
    _expect(_is_integer(value) or isinstance(value, float), where, value, float)
    try:
        return float(value)
    except OverflowError:
        raise RecordError(_wrong(where, value, described(float))) from None


def _expect(condition: bool, where: str, value: object, annotation: Any) -> None:
    if not condition:
        raise RecordError(_wrong(where, value, described(annotation)))


def _wrong(where: str, value: object, expected: str) -> str:
    return f"{where} is {shown(value)}; expected {expected}"
