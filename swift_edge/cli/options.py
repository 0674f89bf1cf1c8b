"""Options that several commands share: those of the runtime as they are declared, and what runs the model.

Options that are not given are left to the bundle. Ranges are checked by the runtime, whose messages say the way out.
"""

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar

import click

from swift_edge.cli.text import text_from
from swift_edge.options import CollectOptions, DataOptions, Option, PickOptions, WritingOptions, options_of

Command = TypeVar("Command", bound=Callable[..., Any])

DECLARED: Mapping[str, Option] = {
    **options_of(DataOptions),
    **options_of(CollectOptions),
    **options_of(PickOptions),
}
"""The options of the runtime that a command may take, by name."""


def declared(name: str, *flags: str, **changes: Any) -> Callable[[Command], Command]:
    """The option of the command line for an option of the runtime; `changes` are those of `click.option`."""
    option = DECLARED[name]
    settings: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "default": option.default}
    if bool in option.kinds:
        settings |= {"is_flag": True}
    elif Sequence in option.kinds:
        settings |= {"multiple": True, "callback": whole_texts}
    elif Mapping in option.kinds:
        settings |= {"callback": schedule}
    elif option.words and int in option.kinds:
        settings |= {"callback": number_or_word, "default": str(option.default), "show_default": True}
    else:
        number = next((kind for kind in (int, float) if kind in option.kinds), str)
        settings |= {"type": number, "show_default": NoneType not in option.kinds or option.default is not None}
        if option.words:
            settings["help"] += f" One of {', '.join(option.words)}."
        if str in option.kinds:
            settings["callback"] = whole_text
    if option.default is None:
        settings["help"] += f"  [default: {option.unset}]"
    return click.option(*(flags or (f"--{name.replace('_', '-')}",)), name, **settings | changes)


def whole_texts(_context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Take texts that are UTF-8; `PromptError` for others."""
    return tuple(text_from(text, parameter.opts[0]) for text in texts)


def whole_text(_context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Take a text that is UTF-8; `PromptError` for another."""
    return None if text is None else text_from(text, parameter.opts[0])


def number_or_word(_context: click.Context, parameter: click.Parameter, text: str) -> int | str:
    """Read a number, or a word that stands for one."""
    words = DECLARED[parameter.name or ""].words
    try:
        return text if text in words else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number; expected one such as 8, or {words[0]}") from None


def schedule(_context: click.Context, parameter: click.Parameter, text: str | None) -> str | dict[int, int] | None:
    """Read a word such as `auto`, or a schedule such as `16:8,32:4`."""
    words = DECLARED[parameter.name or ""].words
    if text is None or text in words:
        return text
    try:
        pairs = [(int(tokens), int(keep)) for tokens, keep in (part.split(":") for part in text.split(","))]
        if len(dict(pairs)) < len(pairs):  # one token count twice
            raise ValueError
        return dict(pairs)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no schedule; expected {', '.join(words)}, or one such as 16:8,32:4"
        ) from None


def writing_options(command: Command) -> Command:
    """Add the options that say how candidates are written."""
    names = (*(name for name in options_of(WritingOptions) if name != "raw"), "seed")
    return with_options(command, *map(declared, names))


def data_options(command: Command) -> Command:
    """Add the options that say which problems are asked, and in which words."""
    limit = click.option("--limit", type=int, metavar="N", help="Take the first N problems only.")
    return with_options(command, *map(declared, options_of(DataOptions)), limit)


def taken_data_options(keywords: dict[str, Any]) -> Any:
    """Take those of `data_options` but the limit out of a command's keywords; raises what `DataOptions` does."""
    asking: Any = {name: keywords.pop(name) for name in options_of(DataOptions)}
    DataOptions.of(**asking)
    return asking


def running_options(command: Command) -> Command:
    """Add the options that say what runs the model, and what becomes of a prompt."""
    return with_options(
        command,
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME",
            help="Execution provider of onnxruntime, such as cuda; may be repeated, best first.  [default: cpu]",
        ),
        click.option("--threads", type=int, metavar="N", help="Threads for the model.  [default: the cores allowed]"),
        declared("raw"),
    )


def with_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Add options in the order in which `--help` shows them."""
    for option in reversed(options):
        command = option(command)
    return command
