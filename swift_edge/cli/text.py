"""Text from outside: arguments and stdin, as UTF-8 or not at all."""

import sys

from swift_edge.errors import PromptError

STDIN = "-"


def prompt_from(argument: str) -> str:
    """Give the prompt that an argument stands for: `-` means all of stdin, anything else is the prompt itself.

    One line end at the end of stdin is taken off, so that `echo text | swift-edge pick -` and `swift-edge pick text`
    ask the same. Raises PromptError on bytes that are not UTF-8.
    """
    if argument != STDIN:
        return text_from(argument, "the prompt")
    if sys.stdin is None:
        raise PromptError("the prompt was to come from stdin, but stdin is closed; pipe a text in or give the prompt")
    text = decode_strictly(sys.stdin.buffer.read(), "the prompt on stdin")
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
