"""`swift-edge pick` and `swift-edge score`: the best of N new answers, the best of given ones.

Options that are not given are left to the bundle. Ranges are checked by the runtime, whose messages say the way out.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from swift_edge.cli.options import Command, running_options, writing_options
from swift_edge.cli.progress import PickProgress, ProgressLine
from swift_edge.cli.report import report
from swift_edge.cli.text import prompt_from, text_from

if TYPE_CHECKING:
    from swift_edge.results import Selection
    from swift_edge.selector import Selector


def model_options(command: Command) -> Command:
    """Add the options of every command that answers with a selection."""
    options = (
        click.option("-m", "--model", required=True, metavar="DIR", help="Bundle to run."),
        click.option("--head", metavar="FILE", help="Head to score with, instead of the bundle's own."),
        click.option("--signal", metavar="NAME", help="Rank by mean_logprob or self_certainty instead of a head."),
        running_options,
        click.option("--json", "as_json", is_flag=True, help="Print one JSON line with everything."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def candidate_count(_context: click.Context, _parameter: click.Parameter, text: str) -> int | Literal["auto"]:
    """Read a number of candidates, or `auto`."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number; expected one such as 8, or auto") from None


def pruning(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | dict[int, int] | None:
    """Read `auto`, `off`, or a schedule such as `16:8,32:4`."""
    if text in (None, "auto", "off"):
        return text
    try:
        return {int(tokens): int(keep) for tokens, keep in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise click.BadParameter(f"{text!r} is no schedule; expected auto, off, or one such as 16:8,32:4") from None


explain_option = click.option(
    "--explain",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a page that shows every token with its reward and gate.",
)


@click.command(short_help="Write N answers and print the best one.")
@click.argument("prompt")
@click.option(
    "-n",
    "--n",
    default="8",
    show_default=True,
    callback=candidate_count,
    metavar="N",
    help="Candidates to write; auto writes as many as the answer takes.",
)
@click.option("--max-n", type=int, metavar="N", help="Most candidates with -n auto.  [default: 16]")
@click.option(
    "--prune",
    callback=pruning,
    metavar="RULE",
    help="Drop weak candidates early: auto, off, or how many stay at token counts, such as 16:8,32:4.  "
    "[default: auto with -n auto, else off]",
)
@click.option("--budget-tokens", type=int, metavar="N", help="Most tokens of all candidates together.")
@click.option("--budget-seconds", type=float, metavar="S", help="Most seconds; the pick is from what is there by then.")
@writing_options
@click.option(
    "--strategy",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How to pick: best, majority, vote, calibrated, best-of-majority; auto goes by what the head and task allow.",
)
@click.option(
    "--task", metavar="NAME", help="What answers are: number, latex, letter, ...  [default: what the head learned from]"
)
@click.option(
    "--min-confidence", type=float, metavar="P", help="Print nothing where the pick is less likely to be right."
)
@explain_option
@model_options
def pick(
    prompt: str,
    n: int | Literal["auto"],
    max_n: int | None,
    prune: str | dict[int, int] | None,
    budget_tokens: int | None,
    budget_seconds: float | None,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: tuple[str, ...],
    seed: int,
    strategy: str,
    task: str | None,
    min_confidence: float | None,
    page: Path | None,
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
    check_page(page)

    from swift_edge.results import CandidateDropped, CandidateFinished, Picked, TokenSampled
    from swift_edge.selector import Selector

    selector = Selector(model, head=head, providers=providers or None, threads=threads)
    progress = PickProgress()
    with ProgressLine(log=False) as line:
        line.show(progress.text)
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
            strategy=strategy,
            task=task,
            min_confidence=min_confidence,
            max_n=max_n,
            prune=prune,
            budget_tokens=budget_tokens,
            budget_seconds=budget_seconds,
            raw=raw,
        ):
            match event:
                case TokenSampled():
                    progress.token(event.index)
                    if line.due():
                        line.show(progress.text)
                case CandidateFinished() | CandidateDropped():
                    progress.ended(event.candidate.index)
                case Picked():
                    selection = event.selection
    show(selection, selector.providers, as_json)
    explain(page, question, selection, selector)


@click.command(short_help="Rank given answers.")
@click.argument("prompt")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@explain_option
@model_options
def score(
    prompt: str,
    texts: tuple[str, ...],
    page: Path | None,
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
    check_page(page)

    from swift_edge.selector import Selector

    selector = Selector(model, head=head, providers=providers or None, threads=threads)
    selection = selector.score(question, answers, signal=signal, raw=raw)
    show(selection, selector.providers, as_json)
    explain(page, question, selection, selector)


def check_page(page: Path | None) -> None:
    """Refuse a page that cannot be written, before anything is computed."""
    if page is not None:
        from swift_edge.explain import require_page_path

        require_page_path(page)


def explain(page: Path | None, question: str, selection: "Selection", selector: "Selector") -> None:
    """Write the page that shows what the pick was made from, if one was asked for."""
    if page is not None:
        from swift_edge.bundle.tokenizer import Tokenizer
        from swift_edge.explain import explain_page, write_page

        write_page(page, explain_page(question, selection, Tokenizer(selector.bundle)))


def show(selection: "Selection", providers: tuple[str, ...], as_json: bool) -> None:
    """Print the answer, or everything in one line, to stdout, and the report to stderr."""
    for line in report(selection, providers):
        click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps(selection.to_dict() | {"providers": list(providers)}))
    elif not selection.abstained:
        click.echo(selection.best.text)
