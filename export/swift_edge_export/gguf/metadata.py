"""The metadata of a GGUF file: values of the expected type, and which keys nobody asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from swift_edge.checks import is_whole
from swift_edge.errors import ExportError
from swift_edge.records import shown
from swift_edge_export.gguf.container import Contents


class Metadata:
    """Reads values by key; a value of another type or out of range is an ExportError that names file and key."""

    def __init__(self, contents: Contents) -> None:
        """Nothing is read yet."""
        self._path = contents.path
        self._values: Mapping[str, Any] = contents.metadata
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the file has a key."""
        return key in self._values

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer of at least `least`; without a default the key has to be there.

        A list with one value for each layer is that value where all are the same.
        """
        value = self._value(key, default)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()
        if not is_whole(value, least):
            raise self.wrong(key, f"an integer of at least {least}, the same for every layer")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A number greater than zero; without a default the key has to be there."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a number greater than zero")
        return float(value)

    def scalar(self, key: str) -> int | float:
        """Any number that is there."""
        value = self._value(key, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text; without a default the key has to be there."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts, empty where the key is not there."""
        value = self._value(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list of texts")
        return value

    def numbers(self, key: str, count: int) -> Sequence[int | float] | None:
        """A list of `count` numbers, or None where the key is not there."""
        value = self._value(key, ())
        if isinstance(value, tuple):
            return None
        if not isinstance(value, np.ndarray) or len(value) < count:
            raise self.wrong(key, f"a list of {count} numbers")
        return value[:count].tolist()  # type: ignore[no-any-return]

    def token(self, key: str, vocab_size: int) -> int | None:
        """The id of a token, or None where the key is not there, or names no token, as some files do for none."""
        value = self._value(key, -1)
        return int(value) if is_whole(value, 0) and value < vocab_size else None

    def other(self, key: str) -> Any:
        """A value of any type, or None."""
        self._read.add(key)
        return self._values.get(key)

    def unread(self, prefix: str) -> dict[str, Any]:
        """Values by key that begin with `prefix` and were not asked for."""
        return {key: value for key, value in self._values.items() if key.startswith(prefix) and key not in self._read}

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`."""
        return [key for key in self._values if key.startswith(prefix)]

    def wrong(self, key: str, expected: str) -> ExportError:
        """The error of a value that is missing or cannot be."""
        found = f"has {shown(self._values[key])} as" if key in self._values else "lacks"
        return ExportError(f"{self._path} {found} {key}; expected {expected}: convert the model again")

    def _value(self, key: str, default: Any) -> Any:
        self._read.add(key)
        return self._values.get(key, default)
