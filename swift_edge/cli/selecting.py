"""`swift-edge pick` and `swift-edge score`: the best of N new answers, the best of given ones.

Options that are not given are left to the bundle. Ranges are checked by the runtime, whose messages say the way out.
"""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from swift_edge.cli.report import Progress, report
from swift_edge.cli.text import prompt_from, text_from

if TYPE_CHECKING:
    from swift_edge.results import Selection

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Add the options that say what runs, and where: the same for every command that opens a model."""
    options = (
        click.option("-m", "--model", required=True, metavar="DIR", help="Bundle to run."),
        click.option("--head", metavar="FILE", help="Head to score with, instead of the bundle's own."),
        click.option("--signal", metavar="NAME", help="Rank by mean_logprob or self_certainty instead of a head."),
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME",
            help="Execution provider of onnxruntime, such as cuda; may be repeated, best first.  [default: cpu]",
        ),
        click.option("--threads", type=int, metavar="N", help="Threads for the model.  [default: the cores allowed]"),
        click.option("--raw", is_flag=True, help="Continue the prompt as it stands, without the chat template."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON line with everything."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(short_help="Write N answers and print the best one.")
@click.argument("prompt")
@click.option("-n", type=int, default=8, show_default=True, metavar="N", help="Candidates to write.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, metavar="N", help="Most tokens of each.")
@click.option("--temperature", type=float, metavar="T", help="0 is greedy.  [default: the bundle's]")
@click.option("--top-p", type=float, metavar="P", help="Probability mass to keep, in (0, 1].  [default: the bundle's]")
@click.option("--top-k", type=int, metavar="K", help="Most likely tokens to keep.  [default: the bundle's]")
@click.option("--min-p", type=float, metavar="P", help="Least share of the top probability.  [default: the bundle's]")
@click.option("--repetition-penalty", type=float, metavar="R", help="1 is none.  [default: the bundle's]")
@click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends a candidate; may be repeated.")
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="The same seed gives the same candidates."
)
@model_options
def pick(
    prompt: str,
    n: int,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: tuple[str, ...],
    seed: int,
    model: str,
    head: str | None,
    signal: str | None,
    providers: tuple[str, ...],
    threads: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Write N answers to PROMPT in one batch and print the best one. PROMPT - reads stdin."""
    question = prompt_from(prompt)
    stops = [text_from(text, "--stop") for text in stop]

    from swift_edge.results import CandidateFinished, Picked, TokenSampled
    from swift_edge.selector import Selector

    selector = Selector(model, head=head, providers=providers or None, threads=threads)
    with Progress(n, shown=sys.stderr is not None and sys.stderr.isatty()) as progress:
        for event in selector.stream(
            question,
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stops,
            seed=seed,
            signal=signal,
            raw=raw,
        ):
            match event:
                case TokenSampled():
                    progress.token()
                case CandidateFinished():
                    progress.finished()
                case Picked():
                    selection = event.selection
    show(selection, selector.providers, as_json)


@click.command(short_help="Rank given answers.")
@click.argument("prompt")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@model_options
def score(
    prompt: str,
    texts: tuple[str, ...],
    model: str,
    head: str | None,
    signal: str | None,
    providers: tuple[str, ...],
    threads: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Rank given answers to PROMPT and print the best one. PROMPT - reads stdin."""
    question = prompt_from(prompt)
    answers = [text_from(text, f"text {number}") for number, text in enumerate(texts, start=1)]

    from swift_edge.selector import Selector

    selector = Selector(model, head=head, providers=providers or None, threads=threads)
    selection = selector.score(question, answers, signal=signal, raw=raw)
    show(selection, selector.providers, as_json)


def show(selection: "Selection", providers: tuple[str, ...], as_json: bool) -> None:
    """Print the answer, or everything in one line, to stdout, and the report to stderr."""
    for line in report(selection, providers):
        click.echo(line, err=True)
    click.echo(json.dumps(selection.to_dict() | {"providers": list(providers)}) if as_json else selection.best.text)
