"""`swift-edge inspect`: what a bundle says about itself, as a small table or as one line of JSON.

Reads and checks the folder; opens neither the graph nor a session.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swift_edge.cli.output import answer
from swift_edge.cli.places import Place

if TYPE_CHECKING:
    from swift_edge.bundle.manifest import Bundle


@click.command(short_help="Show what a bundle says about itself.")
@click.argument("bundle", metavar="DIR", type=Place(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with everything.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Check the files of a bundle and show what it says about itself, its head and the parity of its export."""
    from swift_edge.bundle.folder import open_bundle

    opened = open_bundle(bundle)
    answer(json.dumps(as_document(opened)) if as_json else as_table(opened))


def as_document(bundle: "Bundle") -> dict[str, Any]:
    """Everything that is known about the folder, with the names of the manifest."""
    document: dict[str, Any] = json.loads(bundle.manifest.to_json())
    document |= {
        "path": str(bundle.path),
        "origin": bundle.origin,
        "chat_template": bundle.chat_template is not None,
        "head": head_document(bundle.head_path),
    }
    return document


MOST_CHARACTERS = 1000
"""Characters of what a head says of itself."""


def head_document(path: Path | None) -> dict[str, Any] | None:
    """Everything about a head but its weights; None where there is none."""
    if path is None:
        return None
    from swift_edge.scoring.head import load_head
    from swift_edge.scoring.verdict import verdict_of

    head = load_head(path)
    return {
        "file": path.name,
        "feature": head.feature,
        "layers": list(head.layers),
        "token_statistics": list(head.token_statistics),
        "gate": head.gate,
        "norm": head.norm,
        "inputs": head.weight.shape[1],
        "includes_eos": head.includes_eos,
        "calibrated": head.calibration is not None,
        "known": None if head.known is None else f"by {head.known.problems} held-out problems",
        "verdict": verdict_of(head.summary).get("text"),
        "base_model": head.base_model,
        "precision": head.precision,
        "summary": dict(head.summary),
    }


def as_table(bundle: "Bundle") -> str:
    """Two columns: a name, and what the bundle says."""
    rows = list(_rows(bundle))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in rows)


def _rows(bundle: "Bundle") -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    sizes, precision = manifest.architecture, manifest.precision
    revision = f" at {manifest.base_revision}" if manifest.base_revision else ""
    yield "folder", f"{bundle.path} (written by {bundle.origin})"
    yield "base model", f"{manifest.base_model}{revision}"
    yield "fingerprint", manifest.fingerprint[:16] or "unknown"
    yield (
        "architecture",
        f"{sizes.model_type}: {sizes.num_layers} layers, hidden size {sizes.hidden_size}, "
        f"{sizes.num_attention_heads} heads and {sizes.num_key_value_heads} KV heads of {sizes.head_dim}",
    )
    yield "vocabulary", f"{sizes.vocab_size} tokens, EOS ids: {', '.join(map(str, manifest.tokens.eos_ids)) or 'none'}"
    kv_precision = f", kept in {precision.kv_cache}" if precision.kv_cache is not None else ""
    yield "context", f"{sizes.context_length} tokens, KV {manifest.graph.kv}{kv_precision}"
    details = {
        "block size": precision.block_size,
        "accuracy level": precision.accuracy_level,
        "matrices as they were quantised before": precision.carried,
        "matrices with zero points": precision.zero_points,
        "rounding fitted to tokens": precision.fitted_tokens,
    }
    detail_text = "".join(f", {name} {value}" for name, value in details.items() if value is not None)
    yield "precision", f"{precision.name}{detail_text}"
    yield "hidden states", _listed(manifest.hidden_states.indices) or "none: label-free signals and logits heads only"
    yield "sampling", _named(json.loads(manifest.to_json())["sampling"])
    yield "chat template", "yes" if bundle.chat_template is not None else "no: a prompt is continued as it stands"
    head = head_document(bundle.head_path)
    yield "head", "none" if head is None else _named({**head, "summary": None, "verdict": None})
    if head is not None:
        from swift_edge.training.seen import shown_text

        yield "shown", shown_text(head["summary"]) or "unknown: the head does not say which problems it learned from"
        if head["verdict"] is not None:
            yield "verdict", str(head["verdict"])[:MOST_CHARACTERS].removeprefix("verdict: ")
    for number, (name, record) in enumerate(sorted(manifest.files.items())):
        yield "" if number else "files", f"{name}  {record.size} bytes  sha256 {record.sha256[:16]}"
    for number, text in enumerate(_figures(manifest.parity)):
        yield "" if number else "parity", text
    yield "exporter", _named(manifest.exporter)


def _listed(numbers: tuple[int, ...]) -> str:
    """Write ascending numbers with their runs joined: (0, 1, 2, 5) is `0-2, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items() if value is not None) or "unknown"


def _figures(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Give nested figures line by line: one line for each innermost group, with the names that lead to it."""
    figures = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    if figures:
        yield prefix + _named(figures)
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}: ")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
