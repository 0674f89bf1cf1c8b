"""Panics of libraries that are written in Rust: exceptions that are no `Exception`, and lines on stderr beside them."""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO, Final

_STDERR: Final = 2
_FIRST_LINE: Final = re.compile(rb"^\n?thread '", re.MULTILINE)
"""How what Rust says of a panic begins, with an empty line before it in newer versions."""

_lock = threading.Lock()
_diverted: list[int] = []
"""Where stderr goes when it is not diverted any more."""


def is_panic(error: BaseException) -> bool:
    """Whether a library has panicked; its exception cannot be imported from anywhere."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def quiet_panics() -> Iterator[None]:
    """Keep to ourselves what is said of a panic, a backtrace of more than a hundred lines where one is asked for.

    Rust writes to stderr past Python's `sys.stderr`. What others write there meanwhile comes out afterwards.
    """
    with _lock, tempfile.TemporaryFile() as kept:
        if not _divert(kept):
            yield
            return
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error) or is_panic(error.__cause__ or error)
            raise
        finally:
            _restore()
            kept.seek(0)
            said = kept.read()
            with contextlib.suppress(OSError):
                os.write(_STDERR, _FIRST_LINE.split(said, 1)[0] if panicked else said)


def _divert(kept: BinaryIO) -> bool:
    """Send stderr into a file; false where there is none."""
    try:
        _diverted.append(os.dup(_STDERR))
    except OSError:
        return False
    os.dup2(kept.fileno(), _STDERR)
    return True


def _restore() -> None:
    while _diverted:
        os.dup2(_diverted[-1], _STDERR)
        os.close(_diverted.pop())


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  # the thread that held it may have stayed behind
    _lock = threading.Lock()
    _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
