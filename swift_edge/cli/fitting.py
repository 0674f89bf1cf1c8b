"""`swift-edge fit` and `swift-edge recalibrate`: a store of labelled candidates to a head, or to a calibrated one.

Ranges are checked by the runtime, whose messages say the way out; here texts become options.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from swift_edge.checks import parse_layers
from swift_edge.cli.output import answer
from swift_edge.cli.places import Place, hold_place
from swift_edge.cli.progress import ProgressLine
from swift_edge.errors import InvalidOptionError

if TYPE_CHECKING:
    from swift_edge.scoring.head import Head
    from swift_edge.training.store.format import StoreInfo

UNITS = {"": 0, "b": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}
"""Units of memory as powers of two."""
DECIMAL_UNITS = {"kb": 3, "mb": 6, "gb": 9, "tb": 12}
"""Units of memory as powers of ten."""


def memory_size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Read a number of bytes such as `1GiB`, `512 MiB`, `2GB` or `1000000`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    unit = None if match is None else match[2]
    if match is None or unit not in UNITS.keys() | DECIMAL_UNITS.keys():
        raise click.BadParameter(f"{text!r} is no amount of memory; expected a number with KiB, MiB or GiB, as 1GiB")
    assert unit is not None
    return int(float(match[1]) * (2 ** UNITS[unit] if unit in UNITS else 10 ** DECIMAL_UNITS[unit]))


memory_option = click.option(
    "--memory",
    "memory_bytes",
    default="1GiB",
    show_default=True,
    callback=memory_size,
    metavar="SIZE",
    help="Memory for features; with less they are read anew in every pass.",
)


def statistic_names(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Read `logprob,entropy` or `none`."""
    return () if text == "none" else tuple(part.strip() for part in text.split(","))


def layers_of(text: str, info: "StoreInfo") -> tuple[int, ...] | Literal["best"] | None:
    """Layers of a store, None for all, or `best`; raises `InvalidOptionError` for a form or layer that is not there."""
    if text == "all":
        return None
    if info.feature != "hidden":
        raise InvalidOptionError(f"layers is {text!r}, but the store holds {info.feature}; leave it out")
    return "best" if text == "best" else parse_layers(text, info.layers)


def show(out: Path, head: "Head", as_json: bool) -> None:
    """Print the path, or the summary in one line, to stdout."""
    document = {
        "head": str(out),
        "calibration": None if head.calibration is None else head.calibration.to_dict(),
        "summary": head.summary,
    }
    answer(json.dumps(document, default=dict) if as_json else out)


@click.command(short_help="Fit a head to the candidates of a store.")
@click.argument("stores", nargs=-1, required=True, metavar="STORE...", type=Place(path_type=Path))
@click.option("--out", required=True, metavar="FILE", type=Place(path_type=Path), help="Head file to write.")
@click.option("--loss", metavar="NAME", help="bce, hinge, pairwise, infonca or nca.  [default: bce]")
@click.option("--pairwise-weight", type=float, metavar="W", help="Add W times the pairwise loss.  [default: 0]")
@click.option("--no-gate", is_flag=True, help="Weight all tokens alike.")
@click.option(
    "--layers",
    default="all",
    show_default=True,
    metavar="all|best|last:K|I,J,...",
    help="Hidden states of the store to read; best: those that say most, tried first.",
)
@click.option(
    "--token-statistics",
    default="logprob,entropy",
    show_default=True,
    callback=statistic_names,
    metavar="NAMES|none",
    help="What the logits say of a token, to read beside its states.",
)
@click.option("--norm", metavar="NAME", help="rms divides each state by its root mean square.  [default: none]")
@click.option(
    "--prefixes", type=int, metavar="K", help="Truncations of each response to learn from, too.  [default: 2]"
)
@click.option(
    "--prefix-weight", type=float, metavar="W", help="Weight of a truncation; a whole response has 1.  [default: 0.25]"
)
@click.option("--weight-decay", type=float, metavar="X", help="L2 penalty.  [default: the best of some]")
@click.option(
    "--search", metavar="full|start", help="Try weight decays by the whole fit, or by its cheap start.  [default: full]"
)
@click.option("--max-iterations", type=int, metavar="N", help="Most iterations of each descent.  [default: 200]")
@click.option(
    "--patience", type=int, metavar="N", help="Iterations without better weights after which it ends.  [default: 60]"
)
@click.option("--problems", type=int, metavar="N", help="Use N problems only.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="The same seed gives the same head.")
@memory_option
@click.option("--no-eos", is_flag=True, help="Leave the token that ends a response uncounted.")
@click.option("--force", is_flag=True, help="Replace a file that is already at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the summary.")
def fit(
    stores: tuple[Path, ...],
    out: Path,
    loss: str | None,
    pairwise_weight: float | None,
    no_gate: bool,
    layers: str,
    token_statistics: tuple[str, ...],
    norm: str | None,
    prefixes: int | None,
    prefix_weight: float | None,
    weight_decay: float | None,
    search: str | None,
    max_iterations: int | None,
    patience: int | None,
    problems: int | None,
    seed: int,
    memory_bytes: int,
    no_eos: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fit a head to the labelled candidates of STORE, a folder that collect wrote.

    Several stores of one model and the same settings are read as one. Interrupted, it writes the best head until then.
    Needs SciPy: pip install "swift-edge[train]".
    """
    hold_place(out, force)
    chosen: dict[str, object] = {
        "loss": loss,
        "pairwise_weight": pairwise_weight,
        "norm": norm,
        "prefixes": prefixes,
        "prefix_weight": prefix_weight,
        "weight_decay": weight_decay,
        "search": search,
        "max_iterations": max_iterations,
        "patience": patience,
        "problems": problems,
    }
    with ProgressLine(f"reading {', '.join(map(str, stores))}") as line:
        from swift_edge.scoring.head import save_head
        from swift_edge.training.fitting.fit import FitInterrupted, fit_head
        from swift_edge.training.fitting.options import FitOptions
        from swift_edge.training.store.writer import Store

        opened = [Store.open(path) for path in stores]
        chosen["layers"] = layers_of(layers, opened[0].info)
        options = FitOptions(
            gate=not no_gate,
            token_statistics=token_statistics,  # type: ignore[arg-type]  # checked there
            includes_eos=not no_eos,
            seed=seed,
            memory_bytes=memory_bytes,
            **{name: value for name, value in chosen.items() if value is not None},  # type: ignore[arg-type]  # and these
        )
        try:
            head = fit_head(opened, options, report=line.say)
        except FitInterrupted as interruption:
            save_head(out, interruption.head)
            line.say(f"the best head until then is in {out}")
            raise
        except KeyboardInterrupt:
            line.say(f"no head is finished, so nothing is written to {out}")
            raise
        save_head(out, head)
    show(out, head, as_json)


@click.command(short_help="Calibrate a head on other candidates of its model.")
@click.argument("head", metavar="HEAD", type=Place(path_type=Path))
@click.argument("store", metavar="STORE", type=Place(path_type=Path))
@click.option("--out", required=True, metavar="FILE", type=Place(path_type=Path), help="Head file to write.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the calibration's folds.")
@memory_option
@click.option("--force", is_flag=True, help="Replace a file that is already at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the summary.")
def recalibrate(head: Path, store: Path, out: Path, seed: int, memory_bytes: int, force: bool, as_json: bool) -> None:
    """Match HEAD to the precision of STORE, where that is another, and calibrate it on the labels of STORE.

    200 to 500 problems are enough; they must not be those that the head was trained on.
    """
    hold_place(out, force)
    with ProgressLine(f"reading {store}") as line:
        from swift_edge.scoring.head import load_head, save_head
        from swift_edge.training.fitting.recalibrate import recalibrate as calibrated
        from swift_edge.training.store.writer import Store

        fitted = calibrated(load_head(head), Store.open(store), seed=seed, memory_bytes=memory_bytes, report=line.say)
        save_head(out, fitted)
    show(out, fitted, as_json)
