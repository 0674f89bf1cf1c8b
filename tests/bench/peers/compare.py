"""Time swift-edge beside its peers: every shape and peer in turn, round after round, one process at work at a time.

    python tests/bench/peers/compare.py FOLDER --out FILE.json --shapes 8,128,128 8,512,128 8,128,128,drawn

A shape is candidates, tokens of the prompt and tokens of each candidate, or the most that are drawn. FOLDER is what
`environments.py` made and `agreement.py` looked at. The tables are written beside FILE.json as FILE.md. After each
round the file holds all that was measured: the same command goes on from there, also to more rounds.

Prompts are random token ids, the same for all peers and new in each round; no token ends a candidate. Random weights
give flat logits, on which every sampler sorts the vocabulary: a temperature of 0.1 gives them the entropy of a trained
model's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from environments import AGREEMENT_NAME, CHECKPOINT_NAME, made_of
from figures import Shape, figures_of
from peers import PEERS, Peer, chosen
from report import report
from running import Running
from worker import Request

from swift_edge.evaluation.record import machine_facts
from swift_edge.system.machine import default_threads

LEAST_RATING = 0.5
"""Rating of greedy tokens below which a model is taken for broken."""
WARM_UP_TOKENS = 8
"""Most new tokens of a request that warms up."""
SHORTEST = 8
"""Tokens of the shortest candidate that is drawn."""
MEDIAN_SHARE = 1 / 3
"""Median of the drawn lengths, as a share of the greatest one."""
SPREAD = 0.6
"""Standard deviation of the logarithm of the drawn lengths: one in thirty is cut off, as by `max_new_tokens`."""


def request_of(shape: Shape, number: int, settings: dict[str, Any], first_special: int) -> Request:
    """The request of a shape in a round, the same for every peer."""
    key = [number, shape.n, shape.prompt_tokens, shape.new_tokens, shape.drawn]
    draws = np.random.default_rng(key)
    lengths = np.full(shape.n, shape.new_tokens)  # [n]
    if shape.drawn:
        drawn = draws.lognormal(np.log(shape.new_tokens * MEDIAN_SHARE), SPREAD, shape.n)
        lengths = np.clip(drawn.round(), SHORTEST, shape.new_tokens).astype(np.int64)
    return Request(
        prompt_ids=draws.integers(0, first_special, shape.prompt_tokens).tolist(),
        lengths=lengths.tolist(),
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        seed=number,
    )


def agreement_of(folder: Path, peers: Iterable[Peer]) -> dict[str, Any]:
    """How each peer's tokens were rated; an error where one was not looked at, or does not run the right model."""
    path = folder / AGREEMENT_NAME
    known = json.loads(path.read_text()) if path.is_file() else {}
    for peer in peers:
        found = known.get(peer.name)
        if found is None or found["made"] != made_of(folder, peer):
            raise SystemExit(f"nobody has looked at the tokens of {peer.name}: run agreement.py {folder} first")
        if found["greedy"] < LEAST_RATING or found["other_prompt"] > found["greedy"] / 2:
            raise SystemExit(f"{peer.name} does not run the right model: {json.dumps(found)} in {path}")
    return {peer.name: known[peer.name] for peer in peers}


def opened(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The document with the rounds that the file has already; an error where those were measured otherwise."""
    if not path.is_file():
        return document
    kept: dict[str, Any] = json.loads(path.read_text())
    different = [name for name in ("settings", "machine", "model", "agreement") if kept[name] != document[name]]
    if different:
        raise SystemExit(f"{path} holds a run with other {' and '.join(different)}; name another file with --out")
    return document | {"rounds": kept["rounds"], "answers": kept["answers"], "workers": kept["workers"]}


def measure(document: dict[str, Any], shapes: list[Shape], folder: Path, rounds: int, out: Path) -> None:
    """Measure the rounds that are missing, and write the file and the table after each."""
    settings, first_special = document["settings"], document["model"]["bos_token_id"]
    peers = [peer for peer in PEERS if peer.name in settings["peers"]]
    with contextlib.ExitStack() as stack:
        running = {}
        for peer in peers:
            say(f"opening {peer.name}")
            running[peer.name] = stack.enter_context(Running(folder, peer, settings["threads"]))
        facts = {name: worker.facts for name, worker in running.items()}
        before = document["workers"] or facts
        if any(before[name]["versions"] != facts[name]["versions"] for name in facts):
            raise SystemExit(f"{out} holds rounds of other versions; name another file with --out")
        document["workers"] = facts
        pairs = [(shape, peer.name) for shape in shapes for peer in peers]
        for number in range(document["rounds"], rounds + 1):
            warms_up = number == document["rounds"]  # each time that the workers are new
            answers = []
            # A slow peer warms up with one shape, and is measured in the first round alone.
            due = [
                (shape, name)
                for shape, name in pairs
                if name not in settings["once"] or (shape == shapes[0] if warms_up else number == 1)
            ]
            for place, (shape, name) in enumerate(random.Random(number).sample(due, len(due)), start=1):
                most = WARM_UP_TOKENS if warms_up else shape.new_tokens
                request = request_of(dataclasses.replace(shape, new_tokens=most), number, settings, first_special)
                answer = running[name].ask(request)
                answer |= {"round": number, "shape": str(shape), "peer": name, "steps": request.longest}
                answer.pop("candidates", None)
                answers.append(answer)
                told = answer.get("error") or f"{answer['total_s']:.2f} s"
                say(f"{'warm-up' if warms_up else f'round {number}'} {place}/{len(due)} {name}, {shape}: {told}")
            if not warms_up:
                document |= {"rounds": number, "answers": document["answers"] + answers}
                write(document, shapes, out)


def write(document: dict[str, Any], shapes: Iterable[Shape], out: Path) -> None:
    """Write the file, then the tables."""
    document["figures"] = {
        str(shape): {
            peer.name: figures
            for peer in PEERS
            if (figures := figures_of(document["answers"], shape, peer)) is not None
        }
        for shape in shapes
    }
    write_whole(out, json.dumps(document, indent=1))
    write_whole(out.with_suffix(".md"), report(document))


def write_whole(path: Path, text: str) -> None:
    """Write a file; the old one stays until the new one is whole."""
    partial = path.with_name(f"partial.{path.name}")
    partial.write_text(text)
    partial.rename(path)


def say(what: str) -> None:
    """Tell how far it is."""
    print(what, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", type=chosen, default=list(PEERS), help="names with commas between them")
    parser.add_argument("--once", type=chosen, default=[], help="slow peers, which only the first round measures")
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=[Shape(8, 128, 128, False)], metavar="SHAPE")
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    return parser.parse_args(words)


def shape_of(text: str) -> Shape:
    """A shape such as `8,128,128` or `8,128,128,drawn`; for argparse, which shows the error."""
    n, prompt, new, *drawn = text.split(",")
    if drawn not in ([], ["drawn"]):
        raise ValueError
    return Shape(int(n), int(prompt), int(new), bool(drawn))


def main() -> None:
    """Run what the command line asks for."""
    words = sys.argv[1:]
    arguments = parse(words)
    folder = arguments.folder.resolve()
    shapes = arguments.shapes
    shown = [{str(arguments.folder): "FOLDER", str(arguments.out): "FILE.json"}.get(word, word) for word in words]
    document: dict[str, Any] = {
        "command": shlex.join(["python", "tests/bench/peers/compare.py", *shown]),
        "settings": {
            "peers": [peer.name for peer in arguments.peers],
            "once": [peer.name for peer in arguments.once],
            "shapes": [dataclasses.asdict(shape) for shape in shapes],
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "threads": arguments.threads,
        },
        "machine": machine_facts(),
        "model": json.loads((folder / CHECKPOINT_NAME / "config.json").read_text()),
        "agreement": agreement_of(folder, arguments.peers),
        "workers": {},
        "rounds": 0,
        "answers": [],
    }
    measure(opened(arguments.out, document), shapes, folder, arguments.rounds, arguments.out)


if __name__ == "__main__":
    main()
