"""The two ways out: stdout has the answer, and not to be able to write it is an error; stderr may well be gone."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Final, TextIO

import click

_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What terminals obey: controls but for tab and line end, and what turns the direction of writing; half characters."""


def escaped(text: str) -> str:
    r"""A text whose controls are seen and not obeyed: `escaped("a\x1b[1m")` is `"a\\x1b[1m"`."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def answer(text: object, *, nl: bool = True) -> None:
    """Write to stdout: shown where that is a terminal, and as it is, byte for byte, anywhere else."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(escaped(str(text)) if is_terminal else str(text), nl=nl, color=True)


def say(text: str, *, before: str = "", nl: bool = True) -> None:
    """Write to stderr, or do without: what cannot be told must not cost the answer, or a night's work.

    Models and names of files may have put anything into a text, so it is shown; what comes `before` it is obeyed.
    """
    with telling():
        click.echo(before + escaped(text), err=True, nl=nl)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Go on where stderr takes nothing: it is full, closed, or its reader or terminal went away."""
    try:
        yield
    except (OSError, ValueError):
        discard(sys.stderr)


def prepare_output() -> None:
    """Make both ways out fit for any text, and keep their numbers from files that are opened later."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape; an answer is never lost to an old locale.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed: the next file would get the number, and what a library prints would get into that file.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:  # older versions of click write to it all the same
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def require_output() -> None:
    """Raise `OSError` where stdout can take no answer: known before anything is computed."""
    reason = "it is closed"
    if sys.stdout is not None and not sys.stdout.closed:
        try:
            os.write(sys.stdout.fileno(), b"")
            return
        except io.UnsupportedOperation:  # not a file, as in a test
            return
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            reason = "it is open for reading"
    raise OSError(f"stdout takes no answer ({reason}); leave it open, or redirect it to a file")


def discard(*streams: TextIO | None) -> None:
    """Send into nothing what is still buffered: it could not be written, and would be tried again at exit."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, or not a file at all
                os.dup2(nothing, stream.fileno())
    os.close(nothing)
