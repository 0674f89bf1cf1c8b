"""Text from outside: arguments and stdin, as UTF-8 or not at all."""

import codecs
import sys
from typing import Final

from swift_edge.errors import MIB, PromptError, size_text

STDIN = "-"
MOST_STDIN_BYTES: Final = 64 * MIB
"""Most bytes of a prompt on stdin: no context holds more, and stdin may have no end."""


def prompt_from(argument: str) -> str:
    """Give the prompt that an argument stands for: `-` means all of stdin, anything else is the prompt itself.

    One line end at the end of stdin is taken off, so that `echo text | swift-edge pick -` and `swift-edge pick text`
    ask the same; so is a byte order mark at its beginning. Raises PromptError on bytes that are not UTF-8, and on more
    of them than any prompt has.
    """
    if argument != STDIN:
        return text_from(argument, "the prompt")
    if sys.stdin is None:
        raise PromptError("the prompt was to come from stdin, but stdin is closed; pipe a text in or give the prompt")
    try:
        data = sys.stdin.buffer.read(MOST_STDIN_BYTES + 1)
    except OSError as error:
        raise PromptError(
            f"the prompt was to come from stdin, which does not read ({error.strerror or error}); pipe a text in or "
            "give the prompt"
        ) from error
    if len(data) > MOST_STDIN_BYTES:
        raise PromptError(
            f"the prompt on stdin has more than {size_text(MOST_STDIN_BYTES)}, which no context holds; shorten it"
        )
    text = decode_strictly(data.removeprefix(codecs.BOM_UTF8), "the prompt on stdin")
    return text.removesuffix("\n").removesuffix("\r")


def text_from(argument: str, what: str) -> str:
    """Check an argument of the command line: Python lets bytes that are not UTF-8 through as lone surrogates."""
    return decode_strictly(argument.encode("utf-8", "surrogateescape"), what)


def decode_strictly(data: bytes, what: str) -> str:
    """Decode UTF-8; raises PromptError with the offset of the first byte that is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{what} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason}); "
            "convert it first, for example with: iconv -f LATIN1 -t UTF-8"
        ) from error
