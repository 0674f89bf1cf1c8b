"""The figures as Markdown: all shapes in one table, then each by itself, and what was measured with what.

Knows the document that `compare.py` keeps. Does not measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from peers import PEERS, Peer


def report(document: dict[str, Any]) -> str:
    """The whole report."""
    settings, machine = document["settings"], document["machine"]
    peers = [peer for peer in PEERS if peer.name in settings["peers"]]
    model = document["model"]
    families = dict.fromkeys(peer.family for peer in peers)
    names = {family: [peer.name for peer in peers if peer.family == family] for family in families}
    once = f", in the first one alone {' and '.join(settings['once'])}" if settings["once"] else ""
    parts = [
        table(
            ("total s", *document["figures"], "scores", "model MB", "peak MB"),
            [summary_row(peer, document) for peer in peers],
        ),
        "In brackets: how many times as long as swift-edge's pick of the same round, at int8 for 8-bit peers, else at "
        "int4. `scores`: when it scores the candidates. `peak`: of the process, mapped files included.",
        f"Measured with `{document['command']}` on {machine['processor']}, {settings['threads']} threads, "
        f"{machine['system']}; rounds: {document['rounds']}{once}; all peers and shapes in another order in each, one "
        "process at work at a time. Medians (lowest to highest).",
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
        "`step`: all that is not prefill or second pass, by the tokens of the longest candidate. `sampled / asked`: "
        "tokens sampled for each token asked for.",
        "### What each does",
        table(
            ("", "scores candidates", "reads the prompt", "candidates that have ended", "hidden states"),
            [
                (", ".join(names[family]), family.scores, family.shares_prompt, family.drops_rows,
                 family.hidden_states)
                for family in families
            ],
        ),
        "### Models and versions",
        table(
            ("", "made in s", "peak MB", "load s", "loaded MB", "greedy", "sampled", "other prompt", "versions"),
            [facts_row(document["workers"][peer.name], document["agreement"][peer.name], peer.name) for peer in peers],
        ),
        "`made in`: seconds of a processor. `greedy` and `sampled`: the peer's tokens as the checkpoint in fp32 rates "
        "them by their logit, 1 for the most likely token and 0 for an average one; `other prompt`: the greedy ones "
        "after a prompt that is not theirs.",
        *(notes(names[family], document["workers"][names[family][0]]["notes"]) for family in families),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def summary_row(peer: Peer, document: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table that has all shapes."""
    mine = [rows.get(peer.name, {}) for rows in document["figures"].values()]
    model_bytes = document["workers"][peer.name]["made"]["bytes"]
    peak_bytes = max((figures["peak_bytes"] for figures in mine if "peak_bytes" in figures), default=0)
    return peer.name, *map(summary, mine), peer.family.scores, megabytes(model_bytes), megabytes(peak_bytes)


def summary(figures: dict[str, Any]) -> str:
    """Seconds and ratio of a peer for a shape."""
    if "total_s" not in figures:
        return "failed" if "error" in figures else "-"
    ratio = f" ({figures['ratio']['median']:.2f})" if "ratio" in figures else ""
    return f"{figures['total_s']['median']:.2f}{ratio}"


def shape_row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    """A line of a shape's table."""
    if "error" in figures:
        return (name, figures["error"].replace("|", "/"), *[""] * 6)
    return (
        name,
        spread(figures.get("total_s"), 2),
        spread(figures.get("prefill_s"), 2),
        spread(figures.get("step_s"), 1, 1000),
        spread(figures.get("second_pass_s"), 2),
        spread(figures.get("ratio"), 2),
        f"{figures['sampled_for_each_token']['median']:.2f}",
        megabytes(figures["peak_bytes"]),
    )


def facts_row(facts: dict[str, Any], agreement: dict[str, Any], name: str) -> tuple[str, ...]:
    """A line of the table of models and versions."""
    made = facts["made"]
    return (
        name,
        f"{made['processor_s']:.0f}",
        megabytes(made["peak_bytes"]),
        f"{facts['load_s']:.1f}",
        megabytes(facts["loaded_bytes"]),
        *(f"{agreement[rated]:.2f}" for rated in ("greedy", "sampled", "other_prompt")),
        ", ".join(f"{package} {version}" for package, version in facts["versions"].items()),
    )


def notes(names: Iterable[str], lines: Iterable[str]) -> str:
    """What a worker says of how it was run."""
    return f"{', '.join(names)}: {'; '.join(lines)}."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(figure: dict[str, float] | None, digits: int, scale: float = 1) -> str:
    """A median and its range; a dash where there is none."""
    if figure is None:
        return "-"
    middle, low, high = (f"{figure[name] * scale:.{digits}f}" for name in ("median", "low", "high"))
    return middle if figure["low"] == figure["high"] else f"{middle} ({low} to {high})"


def megabytes(size: float) -> str:
    """A size in megabytes."""
    return f"{size / 1e6:,.0f}"
