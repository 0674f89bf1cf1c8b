"""`swift-edge eval`: a test of a bundle and its heads against everything that needs no training.

Ranges are checked by the runtime, whose messages say the way out.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swift_edge.cli.options import data_options, declared, running_options, taken_data_options, writing_options
from swift_edge.cli.output import answer, say
from swift_edge.cli.places import Place
from swift_edge.cli.progress import ProgressLine, duration_text
from swift_edge.options import CollectOptions

if TYPE_CHECKING:
    from swift_edge.training.collecting.collected import CollectProgress

NamedPaths = tuple[tuple[str, Path], ...]


def size_list(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Read `I,J,...`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers; expected some such as 1,2,4,8") from None


def named_paths(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> NamedPaths:
    """Read `NAME=PATH` of every use of the option."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, sign, path) in zip(texts, pairs, strict=True):
        if not (name and sign and path):
            raise click.BadParameter(f"{text!r} has no name and path; expected NAME=PATH")
    names = [name for name, _, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"the name {name!r} is given twice; expected different ones")
    return tuple((name, Path(path)) for name, _, path in pairs)


file_path = Place(path_type=Path)


@click.command("eval", short_help="Test a bundle and its heads on problems with answers.")
@click.option("-m", "--model", required=True, type=Place(), metavar="DIR", help="Bundle to test.")
@click.option(
    "--data",
    required=True,
    metavar="FILE",
    type=file_path,
    help="Problems: JSON lines with prompt, question or messages, and answer, or the rows of a --benchmark; family and "
    "kind divide the accuracies.",
)
@click.option(
    "--task",
    metavar="NAME",
    help="What answers are: number, latex, letter, ... as in collect.  [default: the benchmark's]",
)
@click.option("--out", required=True, metavar="DIR", type=file_path, help="Folder to write.")
@click.option(
    "-n",
    "sizes",
    default="1,2,4,8,16",
    show_default=True,
    callback=size_list,
    metavar="I,J,...",
    help="Numbers of candidates to judge at; the greatest is written per problem.",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    callback=named_paths,
    metavar="NAME=FILE",
    help="Head to test beside the bundle's own, which is called default; may be repeated.",
)
@click.option("--external", metavar="FILE", type=file_path, help="Scores of another judge, to combine the head's with.")
@click.option("--train", metavar="STORE", type=file_path, help="Store to fit ablations to; keeps the test's features.")
@click.option("--train-logits", metavar="STORE", type=file_path, help="Store of logits, for a head on logits.")
@click.option(
    "--other",
    "others",
    multiple=True,
    callback=named_paths,
    metavar="NAME=DIR",
    help="Bundle of another precision, to run the default head on; may be repeated.",
)
@click.option(
    "--recalibration-data", metavar="FILE", type=file_path, help="Problems to recalibrate on for each other bundle."
)
@click.option(
    "--recalibration-problems", type=int, default=300, show_default=True, metavar="N", help="How many of them."
)
@writing_options
@declared("rows")
@data_options
@running_options
@click.option("--force", is_flag=True, help="Start over in a folder that holds a test.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with everything instead of the tables.")
def evaluate(
    model: str,
    data: Path,
    task: str | None,
    out: Path,
    sizes: tuple[int, ...],
    heads: NamedPaths,
    external: Path | None,
    train: Path | None,
    train_logits: Path | None,
    others: NamedPaths,
    recalibration_data: Path | None,
    recalibration_problems: int,
    limit: int | None,
    threads: int | None,
    providers: tuple[str, ...],
    force: bool,
    as_json: bool,
    **keywords: Any,
) -> None:
    """Write candidates for problems with answers, and tell how often each way to pick one of them is right.

    Figures, tables and drawings are written to --out; the same command goes on with a test that was interrupted.
    """
    asking = taken_data_options(keywords)
    writing = CollectOptions.of(None, keywords)
    with ProgressLine(f"reading {data} and opening {model}") as line:
        from swift_edge.evaluation.ablations import Ablations
        from swift_edge.evaluation.evaluating import evaluate as run
        from swift_edge.evaluation.tables import markdown
        from swift_edge.training.collecting.problems import read_problems

        problems = read_problems(data, **asking)
        if task is None and problems.task is None:
            raise click.UsageError(
                "expected a --task to grade by, as in collect; or, where --data is a benchmark, its name: --benchmark"
            )
        ablations = Ablations(train, train_logits, dict(others), recalibration_data, recalibration_problems)

        def progress(state: "CollectProgress") -> None:
            if line.due():
                line.show(state_text(state))

        try:
            results = run(
                model,
                problems,
                out,
                task=task,
                sizes=sizes,
                heads=dict(heads),
                external=external,
                writing=writing,
                ablations=ablations if ablations.any else None,
                limit=limit,
                force=force,
                providers=providers or None,
                threads=threads,
                report=line.say,
                progress=progress,
            )
        except KeyboardInterrupt:
            line.say(f"what is complete stays in {out}; the same command goes on with it")
            raise
    say(f"written to {out}: results.json, results.md, and drawings as .png and .svg")
    answer(json.dumps(results) if as_json else markdown(results), nl=as_json)


def state_text(state: "CollectProgress") -> str:
    """How far the candidates are, in one line."""
    text = f"{state.problems} of {state.total} problems"
    if state.seconds > 0:
        text += f", {state.tokens / state.seconds:.0f} tok/s"
    done = state.problems - state.problems_before
    return text + (f", {duration_text(state.seconds / done * (state.total - state.problems))} left" if done else "")
