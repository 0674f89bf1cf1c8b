"""The bundles that the tests of the runtime run, opened once, and stores of candidates made up for a test."""

import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_store import write

from swift_edge.bundle import open_bundle
from swift_edge.cli import main, progress
from swift_edge.engine import ModelSession, OpenedModel
from swift_edge.engine.device.memory import Device
from swift_edge.scoring import Head
from swift_edge.training import CandidateRows, Store, StoredCandidate, StoreInfo, StoreWriter

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h4_l4"
WEAK_ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
OPENINGS = ("Once upon a time", "Lily saw a dog", "The sun", "Tom was sad because his mom said no", "One day")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the program in this process, as the console script does."""
    monkeypatch.setattr(progress, "SOON_S", 3600.0)  # what is said must not depend on how busy the machine is

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["swift-edge", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return Outcome(leaving.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def device() -> Device:
    """onnxruntime's CPU, taken for a device."""
    return Device("cpu")


@pytest.fixture
def rows_on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every session that is opened keep its rows where the graph wants them, although that is the CPU."""
    monkeypatch.setattr("swift_edge.engine.graph.rows_device", lambda wanted, _: Device(wanted))


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let children be interrupted: what a shell starts in the background ignores the signal, its children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stories() -> ModelSession:
    """Llama with rotary positions and grouped KV heads, 512 positions."""
    return ModelSession(open_bundle(STORIES), threads=1)


@pytest.fixture(scope="session")
def addition() -> ModelSession:
    """GPT-2 with learned positions, nine of them."""
    return ModelSession(open_bundle(ADDITION), threads=1)


@pytest.fixture(scope="session")
def stories_head() -> Head:
    """A head on some layers of the stories model and both token statistics; untrained, so that every input counts."""
    manifest = open_bundle(STORIES).manifest
    layers = (1, 3, 5)
    inputs = len(layers) * manifest.architecture.hidden_size + 2
    return Head(
        weight=np.random.default_rng(3).normal(0, 0.1, (2, inputs)).astype(np.float32),
        bias=np.array([0.2, -0.3], np.float32),
        layers=layers,
        token_statistics=("logprob", "entropy"),
        fingerprint=manifest.fingerprint,
        precision=manifest.precision.name,
    )


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """Make a store whose signal is known, at a new place: `make_store(problems=40, signal=1.5, precision="int4")`."""

    def make(
        *,
        problems: int = 40,
        n: int = 6,
        width: int = 6,
        most: int = 8,
        signal: float = 1.5,
        shift: float = 0.0,
        stretch: float = 1.0,
        labels: Sequence[Sequence[bool]] | None = None,
        random_labels: bool = False,
        written: int | None = None,
        shard_bytes: int = 2**26,
        seed: int = 0,
        **info: Any,
    ) -> Store:
        """Only tokens that input 0 marks tell right from wrong, in input 1; in the others input 1 misleads.

        Each problem has its own level, input 2 is large, input 3 constant. `shift` and `stretch` change every state as
        another precision might. `labels` are given, drawn per problem, or drawn without any relation to the features.
        """
        settings = {
            "base_model": "tiny/model",
            "fingerprint": "ab" * 32,
            "precision": "fp32",
            "bundle": "bundles/tiny",
            "feature": "hidden",
            "layers": (1, 3),
            "width": width,
            "eos_ids": (1,),
            "problems": problems,
            "n": n,
            "seed": seed,
            "sampling": {"temperature": 1.0},
            "max_new_tokens": most,
            "raw": False,
            "task": "number",
            "tokens_per_candidate": None,
            "data_sha256": f"{seed:064x}",
            "version": "0",
        }
        described = StoreInfo(**(settings | info))
        random = np.random.default_rng(seed)
        folder = tmp_path_factory.mktemp("store") / "store"
        with StoreWriter(folder, described, shard_bytes=shard_bytes) as writer:
            for problem in range(problems if written is None else written):
                chance, level = random.uniform(0.15, 0.85), random.normal(0, 1, (described.slices, width))
                rows = []
                for index in range(n if labels is None else len(labels[problem])):
                    tokens = int(random.integers(1, most + 1))
                    right = bool(random.random() < chance) if labels is None else labels[problem][index]
                    correct = bool(random.random() < 0.5) if random_labels else right
                    states = random.normal(0, 1, (tokens, described.slices, width)) + level
                    marked = np.append(random.random(tokens - 1) < 0.3, True)
                    truth, noise = (1.0 if right else -1.0), random.choice([-1.0, 1.0], tokens)
                    states[:, 0, 0] = np.where(marked, 2, -2) + random.normal(0, 0.3, tokens)
                    states[:, 0, 1] = signal * np.where(marked, truth, noise) + random.normal(0, 1, tokens)
                    states[:, -1, 2] += 500
                    states[:, -1, 3] = 5
                    ids = (*random.integers(2, 90, tokens - 1).tolist(), 1)
                    statistics = np.stack([-random.exponential(1, tokens), random.exponential(1, tokens)], axis=1)
                    statistics = np.column_stack([statistics, random.normal(size=tokens)])
                    candidate = StoredCandidate(
                        problem=problem,
                        index=index,
                        correct=correct,
                        answer="right" if correct else f"wrong {random.integers(3)}",
                        text="",
                        token_ids=ids,
                        tokens=tokens,
                        n_tokens=tokens,
                        finish_reason="stop",
                        unscored_tokens=0,
                        logprob=float(statistics[:, 0].sum()),
                        mean_logprob=float(statistics[:, 0].mean()),
                        self_certainty=0.0,
                        entropy=float(statistics[:, 1].mean()),
                    )
                    kept = (states * stretch + shift).astype(np.float16)
                    rows.append(CandidateRows(candidate, kept, statistics, np.arange(tokens)))
                writer.add(problem, rows)
        return Store.open(folder)

    return make


@pytest.fixture(scope="module")
def adding() -> OpenedModel:
    return OpenedModel.open(WEAK_ADDITION, threads=1)


@pytest.fixture(scope="module")
def telling() -> OpenedModel:
    return OpenedModel.open(STORIES, threads=1)


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    numbers = random.Random(0)
    pairs = [(numbers.randint(100, 999), numbers.randint(100, 999)) for _ in range(20)]
    rows = [{"prompt": f"{a}{b}", "answer": a + b} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tales") / "tales.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in OPENINGS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quick_disk() -> Iterator[None]:
    """What tests of stores kill is a process, not a machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A complete `small_store`."""
    write(tmp_path / "whole")
    return tmp_path / "whole"
