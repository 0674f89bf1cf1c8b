"""`swift-edge collect`: candidates with labels and features, for `fit` to learn from.

Ranges are checked by the runtime, whose messages say the way out; here is checked which options go together.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from swift_edge.cli.options import data_options, declared, running_options, taken_data_options, writing_options
from swift_edge.cli.output import answer, say
from swift_edge.cli.places import Place
from swift_edge.cli.progress import ProgressLine, duration_text
from swift_edge.options import CollectOptions, DataOptions, options_of

if TYPE_CHECKING:
    from swift_edge.training.collecting.collected import CollectProgress

WRITING_OPTIONS = {"n", *options_of(CollectOptions), *options_of(DataOptions)} - {"raw"}
"""Options that say what is asked and how candidates are written, and nothing about given ones."""


@click.command(short_help="Write and grade candidates to train a head on.")
@click.option("-m", "--model", required=True, type=Place(), metavar="DIR", help="Bundle to run.")
@click.option(
    "--data",
    metavar="FILE",
    type=Place(path_type=Path),
    help="Problems: JSON lines with prompt, question or messages, and answer; or the rows of a --benchmark.",
)
@click.option(
    "--responses",
    metavar="FILE",
    type=Place(path_type=Path),
    help="Ready-made answers instead: JSON lines with prompt, reference, completions, correctness.",
)
@click.option(
    "--task",
    metavar="NAME",
    help="What answers are: number, latex, letter, yes-no, literal, text or exact.  [default: the benchmark's]",
)
@click.option("--out", required=True, metavar="DIR", type=Place(path_type=Path), help="Store to write.")
@declared("n", "-n", callback=None, type=int, help="Candidates per problem.")
@click.option(
    "--layers", metavar="all|last:K|I,J,...", help="Hidden states to keep.  [default: all that the bundle has]"
)
@click.option(
    "--feature", type=click.Choice(["hidden", "logits"]), default="hidden", show_default=True, help="What to keep."
)
@click.option("--tokens-per-candidate", type=int, metavar="K", help="Keep K tokens, evenly spread.  [default: all]")
@writing_options
@declared("rows")
@data_options
@running_options
@click.option("--force", is_flag=True, help="Start over in a folder that holds a store.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the summary.")
@click.pass_context
def collect(
    context: click.Context,
    /,
    model: str,
    data: Path | None,
    responses: Path | None,
    task: str | None,
    out: Path,
    n: int,
    layers: str | None,
    feature: str,
    tokens_per_candidate: int | None,
    limit: int | None,
    threads: int | None,
    providers: tuple[str, ...],
    force: bool,
    as_json: bool,
    **keywords: Any,
) -> None:
    """Write candidates for the problems of a file, grade them, and store them with their hidden states.

    The same command goes on with a store that was interrupted.
    """
    _check_combination(context, data, responses)
    asking = taken_data_options(keywords)
    writing = CollectOptions.of(None, keywords)

    with ProgressLine(f"reading {data or responses} and opening {model}") as line:
        from swift_edge.checks import parse_layers
        from swift_edge.engine.model import OpenedModel
        from swift_edge.training.collecting.collect import collect as write
        from swift_edge.training.collecting.collect import collect_responses
        from swift_edge.training.collecting.problems import read_problems
        from swift_edge.training.collecting.responses import read_responses

        ready_responses = None if responses is None else read_responses(responses).first(limit)
        problems = None if data is None else read_problems(data, **asking).first(limit)
        if problems is not None and task is None and problems.task is None:
            raise click.UsageError(
                "--data needs a --task to grade by: number, latex, letter, yes-no, literal, text or exact; or, where "
                "it is a benchmark, its name: --benchmark"
            )
        opened = OpenedModel.open(model, providers or None, threads)
        layer_numbers = None if layers in (None, "all") else parse_layers(layers, opened.session.layers)

        def progress(state: "CollectProgress") -> None:
            if line.due():
                line.show(_state_text(state))

        common: dict[str, Any] = {
            "task": task,
            "layers": layer_numbers,
            "feature": feature,
            "tokens_per_candidate": tokens_per_candidate,
            "force": force,
            "report": line.say,
            "progress": progress,
        }
        try:
            if ready_responses is not None:
                collected = collect_responses(opened, ready_responses, out, raw=writing.raw, **common)
            else:
                assert problems is not None
                collected = write(opened, problems, out, n=n, **common, **keywords)
        except KeyboardInterrupt:
            line.say(f"what is complete stays in {out}; the same command goes on with it")
            raise
    speed = f", {collected.new_tokens / collected.total_s:.0f} tok/s" if collected.new_tokens else ""
    say(
        f"{collected.problems} problems, {collected.candidates} candidates, {collected.share_correct:.1%} right, "
        f"{collected.mixed} problems with right and wrong ones, {collected.tokens} tokens, "
        f"{collected.nbytes / 1e6:.1f} MB; this time {duration_text(collected.total_s)}{speed}"
    )
    answer(json.dumps(collected.to_dict()) if as_json else collected.path)


def _check_combination(context: click.Context, data: Path | None, responses: Path | None) -> None:
    if (data is None) == (responses is None):
        raise click.UsageError("expected --data with problems, or --responses with ready-made answers, and not both")
    if responses is not None:
        writing_options = [
            parameter.opts[-1]
            for parameter in context.command.params
            if parameter.name in WRITING_OPTIONS
            and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        ]
        if writing_options:
            raise click.UsageError(
                f"{', '.join(writing_options)} say how candidates are written; --responses are written already"
            )


def _state_text(state: "CollectProgress") -> str:
    """How far it is, in one line."""
    parts = [f"{state.problems} of {state.total} problems"]
    if state.candidates:
        parts.append(f"{state.correct / state.candidates:.0%} right")
    if state.seconds > 0:
        parts.append(f"{state.tokens / state.seconds:.0f} tok/s")
    done = state.problems - state.problems_before
    if done:
        parts.append(f"{duration_text(state.seconds / done * (state.total - state.problems))} left")
    return ", ".join(parts)
