"""The figures as Markdown: a table for each shape, what each peer does not do, and what it was measured with.

Knows the document that `compare.py` keeps. Does not measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from peers import PEERS


def report(document: dict[str, Any]) -> str:
    """The whole report."""
    settings, machine = document["settings"], document["machine"]
    peers = [peer for peer in PEERS if peer.name in settings["peers"]]
    model = document["model"]
    parts = [
        f"Measured with `{document['command']}` on {machine['processor']}, {settings['threads']} threads, "
        f"{machine['system']}; {document['rounds']} rounds, all peers and shapes in another order in each. "
        "Medians, with the 95 % interval of a bootstrap over the rounds.",
        f"Model: random weights in the shape of Qwen2.5-0.5B ({model['num_hidden_layers']} layers, hidden size "
        f"{model['hidden_size']}, {model['num_attention_heads']}/{model['num_key_value_heads']} heads, vocabulary "
        f"{model['vocab_size']:,}). Temperature {settings['temperature']:g}, top-p {settings['top_p']:g}. Seconds are "
        "from the prompt's token ids to the last token of all candidates, and to their scores where they are scored.",
    ]
    for shape, rows in document["figures"].items():
        heads = ("", "total s", "prefill s", "step ms", "second pass s", "x swift-edge", "sampled / asked", "peak MB")
        lines = [shape_row(peer.name, rows[peer.name]) for peer in peers if peer.name in rows]
        parts += [f"### {shape}", table(heads, lines)]
    parts += [
        "`x swift-edge`: how many times as long as swift-edge's pick of the same round, at int8 for 8-bit peers, else "
        "at int4. `step`: all that is not prefill or second pass, by the tokens of the longest candidate.",
        "### What each does",
        table(
            ("", "scores in the same pass", "reads the prompt", "candidates that have ended", "hidden states"),
            [
                (peer.name, peer.family.scores, peer.family.shares_prompt, peer.family.drops_rows,
                 peer.family.hidden_states)
                for peer in peers
            ],
        ),
        "### Models and versions",
        table(
            ("", "made in s", "peak MB", "model MB", "load s", "loaded MB", "versions"),
            [facts_row(peer.name, document["workers"][peer.name]) for peer in peers],
        ),
        *(notes(peer.name, document["workers"][peer.name]["notes"]) for peer in peers),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def shape_row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    """A line of a shape's table."""
    if "error" in figures:
        return (name, figures["error"].replace("|", "/"), *[""] * 6)
    return (
        name,
        interval(figures.get("total_s"), 2),
        interval(figures.get("prefill_s"), 2),
        interval(figures.get("step_s"), 1, 1000),
        interval(figures.get("second_pass_s"), 2),
        interval(figures.get("ratio"), 2),
        f"{figures['sampled_for_each_token']['median']:.2f}",
        megabytes(figures["peak_bytes"]),
    )


def facts_row(name: str, facts: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of models and versions."""
    made = facts["made"]
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    sizes = (megabytes(made["peak_bytes"]), megabytes(made["bytes"]))
    return name, f"{made['seconds']:.0f}", *sizes, f"{facts['load_s']:.1f}", megabytes(facts["loaded_bytes"]), versions


def notes(name: str, lines: Iterable[str]) -> str:
    """What a worker says of how it was run."""
    return f"{name}: {'; '.join(lines)}."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(figure: dict[str, float] | None, digits: int, scale: float = 1) -> str:
    """A median and its interval; a dash where there is none."""
    if figure is None:
        return "-"
    middle, low, high = (f"{figure[name] * scale:.{digits}f}" for name in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"


def megabytes(size: float) -> str:
    """A size in megabytes."""
    return f"{size / 1e6:,.0f}"
