"""`swift-edge bench`: how long picks of some shapes take here, as a Markdown table or as one line of JSON."""

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from swift_edge.cli.evaluating import size_list
from swift_edge.cli.options import Command, declared
from swift_edge.cli.output import answer
from swift_edge.cli.places import Place
from swift_edge.cli.progress import ProgressLine


def _sizes(name: str, default: str, what: str) -> Callable[[Command], Command]:
    return click.option(
        f"--{name}", default=default, show_default=True, callback=size_list, metavar="I,J,...", help=what
    )


@click.command("bench", short_help="Time picks on this machine.")
@click.option("-m", "--model", required=True, type=Place(), metavar="DIR", help="Bundle to time.")
@click.option(
    "-n",
    "sizes",
    default="1,2,4,8",
    show_default=True,
    callback=size_list,
    metavar="I,J,...",
    help="Numbers of candidates.",
)
@_sizes("prompt-tokens", "128", "Lengths of the prompt.")
@_sizes("new-tokens", "128", "Lengths of the candidates.")
@click.option("--rounds", type=int, default=5, show_default=True, metavar="N", help="Picks of each shape.")
@declared(
    "temperature",
    help="Random weights give flat logits: a low one makes them a trained model's.  [default: the bundle's]",
)
@declared("top_p")
@click.option(
    "--head", type=Place(), metavar="FILE", help="Head to score with.  [default: the bundle's, or a random one]"
)
@click.option("--provider", "providers", multiple=True, metavar="NAME", help="Execution provider.  [default: cpu]")
@click.option("--threads", type=int, metavar="N", help="Threads for the model.  [default: the cores allowed]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with everything instead of the table.")
def bench(
    model: str,
    sizes: tuple[int, ...],
    prompt_tokens: tuple[int, ...],
    new_tokens: tuple[int, ...],
    rounds: int,
    head: str | None,
    providers: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Time picks of every number of candidates with every length of prompt and candidate, in turn.

    Nothing else should run meanwhile. Candidates have fixed lengths, whatever the model would say.
    """
    from swift_edge.evaluation.benchmark import Shape
    from swift_edge.evaluation.benchmark import bench as run

    shapes = [Shape(n, prompt, new) for prompt, new, n in itertools.product(prompt_tokens, new_tokens, sizes)]
    with ProgressLine() as line:
        results = run(
            model,
            shapes,
            rounds=rounds,
            head=head,
            providers=providers or None,
            threads=threads,
            progress=lambda done, total: line.show(f"{done} of {total} picks"),
            **sampling,
        )
    answer(json.dumps(results) if as_json else table(results))


def table(results: Mapping[str, Any]) -> str:
    """The figures as Markdown: what was timed and on what, then a line for every shape."""
    machine, versions = results["machine"], results["versions"]
    lines = [
        f"{results['model']}, {results['precision']}, scored by {results['scored_by']}; "
        f"temperature {results['sampling']['temperature']}, top-p {results['sampling']['top_p']}; "
        f"{results['threads']} threads of {machine['processor']}, {machine['system']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; opened in {results['load_s']:.2f} s; medians of {results['rounds']} rounds (95 % interval)",
        "",
        "| prompt | new | N | pick, s | prefill, s | first token, s | step, ms | sampling | head | rest | tokens/s "
        "| one by one | peak, MiB |",
        "|" + "---:|" * 13,
    ]
    for shape in results["shapes"]:
        faster = shape.get("times_faster_than_one_by_one")
        peak = shape["peak_bytes"]
        cells = [
            str(shape["prompt_tokens"]),
            str(shape["new_tokens"]),
            str(shape["n"]),
            _with_interval(shape["pick_s"], "{:.2f}"),
            f"{shape['prefill_s']['median']:.3f}",
            f"{shape['first_token_s']['median']:.3f}",
            f"{1000 * shape['step_s']['median']:.2f}",
            *(f"{shape[name]['median']:.1%}" for name in ("sampling_share", "head_share", "rest_share")),
            f"{shape['tokens_per_s']['median']:.0f}",
            "" if faster is None else _with_interval(faster, "{:.2f}x"),
            "" if peak is None else f"{peak / 2**20:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_interval(figure: Mapping[str, float], form: str) -> str:
    return f"{form.format(figure['median'])} ({form.format(figure['low'])} to {form.format(figure['high'])})"
