"""The command line: `swift-edge COMMAND`, also `python -m swift_edge COMMAND`.

The answer goes to stdout, the report and every complaint to stderr. Exit status 0: done; 1: a `SwiftEdgeError` or a
refusal of the operating system, told in one line; 2: the command was called wrongly, the value of an option too; 3: a
pick is less likely to be right than was asked for, and nothing is picked; 130: interrupted, or asked to end (SIGTERM,
SIGHUP); 141: the reader of the output went away. This is the only place where errors become lines and exit statuses.

Neither onnxruntime nor the tokenizers nor the exporter is imported before a command needs it.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from swift_edge import __version__
from swift_edge.cli.benchmarking import bench
from swift_edge.cli.evaluating import evaluate
from swift_edge.cli.exporting import convert_head, export
from swift_edge.cli.fitting import fit, recalibrate
from swift_edge.cli.inspecting import inspect
from swift_edge.cli.output import discard, escaped, prepare_output, require_output, say, telling
from swift_edge.cli.selecting import pick, score
from swift_edge.cli.training import collect
from swift_edge.errors import InvalidOptionError, SwiftEdgeError, shortened
from swift_edge.system.machine import DISK_FULL, memory_for

EXIT_FAILED = 1
EXIT_CALLED_WRONGLY = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class CommandLine(click.Group):
    """The group of commands, and the edge at which exceptions become one line and an exit status."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the arguments; `--help` and `--version` are written here."""
        with edge():
            require_output()
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for; any failure that is not a bug leaves as an exit status."""
        with edge():
            return super().invoke(context)


@contextlib.contextmanager
def edge() -> Iterator[None]:
    """Tell failures in one line, and leave with their exit status."""
    try:
        with memory_for("the command"):
            yield
    except BrokenPipeError:
        discard(sys.stdout, sys.stderr)
        status = EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        say("interrupted")
        status = EXIT_INTERRUPTED
    except SwiftEdgeError as error:
        complain(str(error))
        status = EXIT_CALLED_WRONGLY if isinstance(error, InvalidOptionError) else EXIT_FAILED
    except click.UsageError as error:
        error.message = shortened(escaped(error.message))  # type: ignore[misc]  # it may quote a file's name
        if sys.stderr is not None:  # click would take stdout for it
            with telling():
                error.show()
        status = error.exit_code
    except ImportError as error:
        # A library that is interrupted while it loads may turn the interruption into a failure to load.
        if not isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise
        say("interrupted")
        status = EXIT_INTERRUPTED
    except OSError as error:
        complain(system_refusal(error))
        discard(sys.stdout, sys.stderr)
        status = EXIT_FAILED
    else:
        return
    raise click.exceptions.Exit(status)


def complain(message: str) -> None:
    """Write an error; its length is that of what is shown, since an escape takes up to six characters."""
    say(f"error: {shortened(escaped(message))}")


def system_refusal(error: OSError) -> str:
    """Tell in one line what the operating system refused, on which file, and what to do where that is clear."""
    what = error.strerror or str(error) or type(error).__name__
    where = f": {os.fspath(error.filename)!r}" if error.filename is not None else ""
    way_out = "; free some space or write to another disk" if error.errno in DISK_FULL else ""
    return " ".join(f"{what}{where}{way_out}".split())


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="swift-edge", message="%(prog)s %(version)s")
def commands() -> None:
    """Best of N from a small language model: write N candidates in one batch, score them in the same pass, pick one."""


for command in (pick, score, collect, fit, recalibrate, evaluate, bench, inspect, export, convert_head):
    commands.add_command(command)


def main() -> None:
    """Run the command that the arguments of the process name, and leave with its exit status."""
    prepare_output()
    for name in ("SIGTERM", "SIGHUP"):
        # A scheduler that ends a job, or a terminal that is closed, is an interruption as Ctrl-C is: without this
        # nothing is cleaned up, nothing kept. What is ignored, as under nohup, stays so.
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    # A prompt may contain * and ?: on Windows click would take them for file names.
    commands.main(prog_name="swift-edge", windows_expand_args=False)
