"""The texts under the fields of a dataclass, where `help` shows them."""

import ast
import inspect
import itertools
import textwrap
from typing import TypeVar

Kind = TypeVar("Kind")


def show_field_texts(kind: type[Kind]) -> type[Kind]:
    """Let `help(kind)` show the text under each field of a dataclass with slots.

    `help` looks for them in `__slots__`, if that is a dictionary. Python itself drops them when it compiles the class.
    """
    kind.__slots__ = _FieldTexts(kind)  # type: ignore[attr-defined]
    return kind


class _FieldTexts(dict[str, str]):
    """Texts by field, read from the source when the first is asked for: importing takes no longer."""

    def __init__(self, kind: type) -> None:
        super().__init__(dict.fromkeys(kind.__slots__, ""))  # type: ignore[attr-defined]
        self._kind: type | None = kind

    def __getitem__(self, name: str) -> str:
        if self._kind is not None:
            self.update(_read(self._kind))
            self._kind = None
        return super().__getitem__(name)


def _read(kind: type) -> dict[str, str]:
    try:
        source = inspect.getsource(kind)
    except OSError:  # installed without sources
        return {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            texts[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return texts
