"""Options that several commands share: how candidates are written, and what runs the model.

Options that are not given are left to the bundle. Ranges are checked by the runtime, whose messages say the way out.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def writing_options(command: Command) -> Command:
    """Add the options that say how candidates are written."""
    return _with(
        command,
        click.option(
            "--max-new-tokens", type=int, default=512, show_default=True, metavar="N", help="Most tokens of each."
        ),
        click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: the bundle's]"),
        click.option(
            "--top-p", type=float, metavar="P", help="Probability mass to keep, in (0, 1].  [default: the bundle's]"
        ),
        click.option("--top-k", type=int, metavar="K", help="Most likely tokens to keep.  [default: the bundle's]"),
        click.option(
            "--min-p", type=float, metavar="P", help="Least share of the top probability.  [default: the bundle's]"
        ),
        click.option("--repetition-penalty", type=float, metavar="R", help="1 is none.  [default: the bundle's]"),
        click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends a candidate; may be repeated."),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            metavar="N",
            help="The same seed gives the same candidates.",
        ),
    )


def running_options(command: Command) -> Command:
    """Add the options that say what runs the model, and what becomes of a prompt."""
    return _with(
        command,
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME",
            help="Execution provider of onnxruntime, such as cuda; may be repeated, best first.  [default: cpu]",
        ),
        click.option("--threads", type=int, metavar="N", help="Threads for the model.  [default: the cores allowed]"),
        click.option("--raw", is_flag=True, help="Continue prompts as they stand, without the chat template."),
    )


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
