"""`swift-edge export` and `swift-edge convert-head`: the two commands that need the exporter.

The exporter is loaded by name when one of them runs.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from swift_edge.cli.output import answer, say
from swift_edge.cli.places import Place, hold_place
from swift_edge.errors import MissingExtraError

EXTRAS = {"dynamo": "export", "optimum": "optimum"}


@contextmanager
def requirements_of(extra: str, what: str) -> Iterator[None]:
    """Turn the absence of a package into the line that says how to install the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "swift_edge"):
            raise
        raise MissingExtraError(what, package, extra) from error


@click.command(short_help="Make a bundle from a model.")
@click.argument("model")
@click.option("--out", required=True, metavar="DIR", type=Place(path_type=Path), help="Folder to write.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    default="fp32",
    show_default=True,
    help="How the weights are stored.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["float", "int8"]),
    default="float",
    show_default=True,
    help="How keys and values are kept: as they are computed, or rounded to a quarter of fp32's memory.",
)
@click.option(
    "--layers",
    default="all",
    show_default=True,
    metavar="all|last:K|I,J,...",
    help="Hidden states to give out: 0 is the embeddings, the last one comes after the final norm.",
)
@click.option("--head", metavar="FILE", type=Place(path_type=Path), help="Head to put into the bundle.")
@click.option(
    "--exporter",
    type=click.Choice(sorted(EXTRAS)),
    default="dynamo",
    show_default=True,
    help="dynamo: torch.onnx with transformers 5; optimum: optimum's ONNX exporter with transformers 4.57.",
)
@click.option(
    "--block-size", type=int, metavar="WEIGHTS", help="Weights that share one scale (int8 and int4).  [default: 128]"
)
@click.option(
    "--rounding",
    type=click.Choice(["calibrated", "nearest"]),
    default="calibrated",
    show_default=True,
    help="How int8 and int4 weights are rounded: so that errors make up for one another on text that the model writes, "
    "which takes a while, or each to its nearest code.",
)
@click.option("--file", metavar="NAME", help="GGUF file in the folder MODEL, or in the hub's.")
@click.option("--revision", metavar="COMMIT", help="Revision of a model on the hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model. Read it first.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already at --out.")
def export(
    model: str,
    out: Path,
    precision: str,
    kv_cache: str,
    layers: str,
    head: Path | None,
    exporter: str,
    block_size: int | None,
    rounding: str,
    file: str | None,
    revision: str | None,
    trust_remote_code: bool,
    force: bool,
) -> None:
    """Make a bundle from MODEL, a folder, a hub id or a GGUF file, and check it against the original.

    Nothing is published before it has passed.
    """
    say("load torch and transformers")  # seconds on a machine that has not read them before
    with requirements_of(EXTRAS[exporter], f"export --exporter {exporter}"):
        if exporter == "optimum":  # known now rather than after the weights are loaded
            importlib.import_module("optimum.exporters.onnx")
        publish: Any = importlib.import_module("swift_edge_export.publish")
        publish.export_bundle(
            model,
            out,
            precision=precision,
            kv_cache=kv_cache,
            layers=layers,
            head=head,
            exporter=exporter,
            revision=revision,
            file=file,
            trust_remote_code=trust_remote_code,
            block_size=block_size,
            rounding=rounding,
            replace=force,
            report=say,
        )
    answer(out)


def layer_list(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read `I,J,...`."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of layers; expected numbers such as 28,29,30,31") from None


@click.command("convert-head", short_help="Make a head file from a SWIFT checkpoint.")
@click.argument("file", type=Place(path_type=Path))
@click.option("--bundle", metavar="DIR", type=Place(path_type=Path), help="Bundle of the model it was trained on.")
@click.option(
    "--out", metavar="FILE", type=Place(path_type=Path), help="Head file to write.  [default: FILE with .npz]"
)
@click.option("--layers", callback=layer_list, metavar="I,J,...", help="Hidden states it reads, where that is open.")
@click.option("--feature", type=click.Choice(["hidden", "logits"]), help="What it reads, where that is open.")
@click.option(
    "--final-norm",
    is_flag=True,
    help="It was trained with the final norm on every hidden state, and cannot be converted.",
)
@click.option("--force", is_flag=True, help="Replace a file that is already at --out.")
def convert_head(
    file: Path,
    bundle: Path | None,
    out: Path | None,
    layers: tuple[int, ...] | None,
    feature: str | None,
    final_norm: bool,
    force: bool,
) -> None:
    """Make a head file from FILE, a checkpoint (.pt or .safetensors) of SWIFT's own training code."""
    from swift_edge.bundle.folder import open_bundle

    out = out if out is not None else file.with_suffix(".npz")
    hold_place(out, force)
    manifest = None if bundle is None else open_bundle(bundle, hashes=False).manifest
    with requirements_of("export", "convert-head"):
        converter: Any = importlib.import_module("swift_edge_export.convert_head")
        head = converter.convert_head(file, out, manifest, layers=layers, feature=feature, final_norm=final_norm)
    read = "logits" if head.feature == "logits" else f"hidden states {', '.join(map(str, head.layers))}"
    say(f"reads {read}; gate {'on' if head.gate else 'off'}; {head.weight.shape[1]} inputs; for {head.base_model}")
    answer(out)
