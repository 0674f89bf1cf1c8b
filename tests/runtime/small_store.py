"""A store of a few made-up candidates in several shards, written quickly, for the tests of stores."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from swift_edge.training import CandidateRows, StoredCandidate, StoreInfo, StoreWriter

INFO = StoreInfo(
    base_model="tiny",
    fingerprint="ab",
    precision="fp32",
    bundle="models/tiny",
    feature="hidden",
    layers=(1, 3),
    width=4,
    eos_ids=(2,),
    problems=7,
    n=3,
    seed=0,
    sampling={"temperature": 1.0, "stop": []},
    max_new_tokens=8,
    raw=False,
    task="number",
    tokens_per_candidate=None,
    data_sha256="cd",
    version="0",
)
SMALL = 3000  # bytes of a shard: about two problems


def rows_of(problem: int, info: StoreInfo = INFO) -> list[CandidateRows]:
    """Candidates that depend on the problem alone; the last token of every other one was not fed."""
    generator = np.random.default_rng(problem)
    found = []
    for index in range(info.n or 2 + problem % 2):
        tokens = int(generator.integers(1, 9))
        fed = tokens - (index % 2 and tokens > 1)
        candidate = StoredCandidate(
            problem=problem,
            index=index,
            correct=bool(generator.integers(2)),
            answer=None if index else "caf\u00e9\u2028",
            text=f"text {problem}\n{index}\r\u2028",
            token_ids=tuple(generator.integers(0, 300, tokens).tolist()),
            tokens=fed,
            n_tokens=tokens,
            finish_reason="stop",
            unscored_tokens=tokens - fed,
            logprob=float(generator.normal()),
            mean_logprob=float(generator.normal()),
            self_certainty=math.inf if index == 1 else 0.5,
            entropy=0.1,
            scores={"plain": 0.25},
        )
        states = generator.normal(size=(fed, info.slices, info.width)).astype(np.float16)
        statistics = generator.normal(size=(fed, 3)).astype(np.float32)
        found.append(CandidateRows(candidate, states, statistics, np.arange(fed)))
    return found


def write(path: Path, info: StoreInfo = INFO, until: int | None = None, shard_bytes: int = SMALL) -> None:
    """Write the store, or go on with it, up to a problem."""
    with StoreWriter(path, info, shard_bytes=shard_bytes) as writer:
        for problem in range(writer.done, info.problems if until is None else until):
            writer.add(problem, rows_of(problem, info))


def add_all(writer: StoreWriter) -> None:
    """Add the problems that are not there yet."""
    for problem in range(writer.done, writer.info.problems):
        writer.add(problem, rows_of(problem, writer.info))


def finish(writer: StoreWriter) -> None:
    """Add them, and say that there are no more."""
    add_all(writer)
    writer.close()


def content(path: Path) -> dict[str, bytes]:
    """Every file of a store, without the lock of a writer."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}


def change_lines(path: Path, change: Any) -> None:
    """Change the candidates of the second shard as they are written down."""
    file = path / "shard-00001.jsonl"
    documents = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    change(documents)
    file.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
