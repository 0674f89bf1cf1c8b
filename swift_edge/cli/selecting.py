"""`swift-edge pick` and `swift-edge score`: the best of N new answers, the best of given ones.

Options that are not given are left to the bundle. Ranges are checked by the runtime, whose messages say the way out.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swift_edge.cli.options import Command, declared, running_options, with_options, writing_options
from swift_edge.cli.output import answer, say
from swift_edge.cli.places import Place, require_no_part
from swift_edge.cli.progress import PickProgress, ProgressLine
from swift_edge.cli.report import report
from swift_edge.cli.text import prompt_from, text_from
from swift_edge.options import PickOptions, SignalName

if TYPE_CHECKING:
    from swift_edge.results import Selection
    from swift_edge.selector import Selector


EXIT_ABSTAINED = 3
"""Exit status of a pick that is less likely to be right than was asked for."""


def model_options(command: Command) -> Command:
    """Add the options of every command that answers with a selection."""
    return with_options(
        command,
        click.option("-m", "--model", required=True, type=Place(), metavar="DIR", help="Bundle to run."),
        click.option("--head", type=Place(), metavar="FILE", help="Head to score with, instead of the bundle's own."),
        declared("signal"),
        running_options,
        click.option("--json", "as_json", is_flag=True, help="Print one JSON line with everything."),
    )


explain_option = click.option(
    "--explain",
    "page",
    type=Place(path_type=Path),
    metavar="FILE.html",
    help="Write a page that shows every token with its reward and gate.",
)
force_option = click.option("--force", is_flag=True, help="Replace a page that is already there.")


@click.command(short_help="Write N answers and print the best one.")
@click.argument("prompt")
@declared("n", "-n", "--n")
@declared("max_n")
@declared("prune")
@declared("budget_tokens")
@declared("budget_seconds")
@writing_options
@declared("strategy")
@declared("task")
@declared("min_confidence")
@explain_option
@force_option
@model_options
@click.pass_context
def pick(
    context: click.Context,
    /,
    prompt: str,
    page: Path | None,
    force: bool,
    model: str,
    head: str | None,
    providers: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    **keywords: Any,
) -> None:
    """Write N answers to PROMPT in one batch and print the best one. PROMPT - reads stdin."""
    options = PickOptions.of(None, keywords)
    question = prompt_from(prompt)
    check_page(page, force)

    from swift_edge.results import CandidateDropped, CandidateFinished, Picked, TokenSampled
    from swift_edge.selector import Selector

    selector = Selector(model, head=head, providers=providers or None, threads=threads)
    progress = PickProgress()
    with ProgressLine(log=False) as line:
        line.show(progress.text)
        for event in selector.stream(question, options=options):
            match event:
                case TokenSampled():
                    progress.token(event.index)
                    if line.due():
                        line.show(progress.text)
                case CandidateFinished() | CandidateDropped():
                    progress.ended(event.candidate.index)
                case Picked():
                    selection = event.selection
    try:
        show(selection, selector.providers, as_json)
    finally:  # one of the two may have no room
        explain(page, force, question, selection, selector)
    if selection.abstained:
        context.exit(EXIT_ABSTAINED)


@click.command(short_help="Rank given answers.")
@click.argument("prompt")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@explain_option
@force_option
@model_options
def score(
    prompt: str,
    texts: tuple[str, ...],
    page: Path | None,
    force: bool,
    model: str,
    head: str | None,
    signal: SignalName | None,
    providers: tuple[str, ...],
    threads: int | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Rank given answers to PROMPT and print the best one. PROMPT - reads stdin."""
    question = prompt_from(prompt)
    answers = [text_from(text, f"text {number}") for number, text in enumerate(texts, start=1)]
    check_page(page, force)

    from swift_edge.selector import Selector

    selector = Selector(model, head=head, providers=providers or None, threads=threads)
    selection = selector.score(question, answers, signal=signal, raw=raw)
    try:
        show(selection, selector.providers, as_json)
    finally:  # one of the two may have no room
        explain(page, force, question, selection, selector)


def check_page(page: Path | None, force: bool) -> None:
    """Refuse a page that cannot be written, before anything is computed."""
    if page is not None:
        from swift_edge.explain import require_page_path

        require_page_path(page, force=force)
        require_no_part(page)


def explain(page: Path | None, force: bool, question: str, selection: "Selection", selector: "Selector") -> None:
    """Write the page that shows what the pick was made from, if one was asked for."""
    if page is not None:
        check_page(page, force)  # somebody else may have written one meanwhile
        from swift_edge.explain import explain_page, write_page

        write_page(page, explain_page(question, selection, selector.tokenizer))


def show(selection: "Selection", providers: tuple[str, ...], as_json: bool) -> None:
    """Print the answer, or everything in one line, to stdout, and the report to stderr."""
    for line in report(selection, providers):
        say(line)
    if as_json:
        answer(json.dumps(selection.to_dict() | {"providers": list(providers)}))
    elif not selection.abstained:
        answer(selection.best.text)
