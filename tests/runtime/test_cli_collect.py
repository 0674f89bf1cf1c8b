"""`swift-edge collect`: what is printed where, exit statuses, and what is left after an interruption."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import swift_edge
from swift_edge.training import Store

ROOT = Path(__file__).parents[2]
ADDITION = str(ROOT / "tests" / "data" / "addition-gpt2-h1_l1")
STORIES = str(ROOT / "models" / "stories260k")
QUICK = ("-m", ADDITION, "--task", "number", "-n", "4", "--max-new-tokens", "4", "--threads", "1")


Run = Callable[..., Any]


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    pairs = [(331, 970), (123, 456), (555, 444), (190, 810), (700, 211)]
    path.write_text(
        "".join(json.dumps({"question": f"{a}{b}", "answer": str(a + b)}) + "\n" for a, b in pairs), encoding="utf-8"
    )
    return path


def test_the_path_is_printed_and_the_summary_reported(run: Run, sums: Path, tmp_path: Path) -> None:
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store")
    assert (outcome.status, outcome.out) == (0, f"{tmp_path / 'store'}\n")
    *_, summary = outcome.err.splitlines()
    assert summary.startswith("5 problems, 20 candidates, ")
    for part in ("% right", "problems with right and wrong ones", "80 tokens", "MB", "tok/s"):
        assert part in summary
    assert "of disk" in outcome.err
    assert "\r" not in outcome.err
    again = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store")
    assert (again.status, again.out) == (0, outcome.out)
    assert "complete: 5 problems, 20 candidates" in again.err
    assert "tok/s" not in again.err


def test_json_is_one_line(run: Run, sums: Path, tmp_path: Path) -> None:
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store", "--json")
    (line,) = outcome.out.splitlines()
    document = json.loads(line)
    opened = Store.open(tmp_path / "store")
    assert document["path"] == str(tmp_path / "store")
    assert (document["problems"], document["candidates"], document["tokens"]) == (5, 20, 80)
    assert document["correct"] == sum(each.correct for each in opened.candidates)
    assert {"share_correct", "mixed", "total_s", "prefill_s", "decode_s", "head_s", "notes"} <= set(document)


def test_options_reach_the_store(run: Run, sums: Path, tmp_path: Path) -> None:
    options = (
        "--top-p",
        "0.8",
        "--top-k",
        "5",
        "--min-p",
        "0.01",
        "--temperature",
        "0.9",
        "--repetition-penalty",
        "1.1",
    )
    kept = ("--layers", "last:1", "--tokens-per-candidate", "2", "--limit", "3", "--seed", "7", "--raw", "--stop", "9")
    outcome = run("collect", *QUICK, *options, *kept, "--data", sums, "--out", tmp_path / "store", "--rows", "3")
    assert outcome.status == 0
    info = Store.open(tmp_path / "store").info
    assert info.sampling == {
        "temperature": 0.9,
        "top_p": 0.8,
        "top_k": 5,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "stop": ["9"],
    }
    assert (info.layers, info.tokens_per_candidate, info.problems, info.seed, info.raw) == ((1,), 2, 3, 7, True)
    assert (info.n, info.max_new_tokens, info.task, info.feature) == (4, 4, "number", "hidden")
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store", "--feature", "logits", "--force")
    assert outcome.status == 0
    assert Store.open(tmp_path / "store").info.feature == "logits"
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "all", "--layers", "all")
    assert Store.open(tmp_path / "all").info.layers == (0, 1)


def test_given_responses_are_stored(run: Run, tmp_path: Path) -> None:
    rows = {"prompt": "331970", "completions": ["1301", "1201"], "correctness": [True, False], "steps": [["1301"], []]}
    (tmp_path / "given.jsonl").write_text(json.dumps(rows) + "\n", encoding="utf-8")
    model = ("-m", ADDITION, "--threads", "1", "--responses", tmp_path / "given.jsonl")
    outcome = run("collect", *model, "--out", tmp_path / "store")
    assert (outcome.status, outcome.out) == (0, f"{tmp_path / 'store'}\n")
    assert "note: steps are passed over" in outcome.err
    assert [each.correct for each in Store.open(tmp_path / "store").candidates] == [True, False]
    for option in (("-n", "4"), ("--temperature", "1"), ("--seed", "0"), ("--rows", "3")):
        refused = run("collect", *model, "--out", tmp_path / "other", *option)
        assert refused.status == 2
        assert option[0] in refused.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "--data with problems, or --responses"),
        (("--data", "x", "--responses", "y"), "not both"),
        (("--data", "x", "--rows", "many"), "--rows"),
        (("--data", "x", "--feature", "states"), "--feature"),
    ],
)
def test_wrong_calls_are_status_2(run: Run, tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    outcome = run("collect", *QUICK, "--out", tmp_path / "store", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert hint in outcome.err
    assert not (tmp_path / "store").exists()


def test_problems_without_a_task_are_a_wrong_call(run: Run, sums: Path, tmp_path: Path) -> None:
    outcome = run("collect", "-m", ADDITION, "--data", sums, "--out", tmp_path / "store")
    assert outcome.status == 2
    assert "--task" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("-m", "no-such-folder"), "no-such-folder"),
        (("--data", "no-such-file"), "no-such-file"),
        (("--task", "letter"), "line 1 has the answer '1301'"),
        (("--provider", "abacus"), "abacus"),
    ],
)
def test_errors_are_one_line_and_status_1(
    run: Run, sums: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store", *arguments)
    assert (outcome.status, outcome.out) == (1, "")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert hint in line


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--task", "sums"), "there is no task 'sums'; expected one of number"),
        (("-n", "0"), "n is 0"),
        (("--rows", "0"), "rows is 0"),
        (("--layers", "last:9"), "layers is 'last:9'; expected all, last:K"),
        (("--layers", "all", "--feature", "logits", "--tokens-per-candidate", "0"), "tokens_per_candidate is 0"),
        (("--limit", "0"), "limit is 0"),
        (("--temperature", "0"), "temperature 0"),
        (("--threads", "0"), "threads"),
    ],
)
def test_bad_values_of_options_are_one_line_and_status_2(
    run: Run, sums: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert hint in line


def test_one_class_alone_is_a_note_in_the_report(run: Run, sums: Path, tmp_path: Path) -> None:
    sums.write_text('{"prompt": "331970", "answer": "5"}\n', encoding="utf-8")
    outcome = run("collect", *QUICK, "--data", sums, "--out", tmp_path / "store")
    assert outcome.status == 0
    assert "note: all 4 candidates are wrong" in outcome.err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_an_interruption_keeps_what_is_complete_and_says_how_to_go_on(tmp_path: Path) -> None:
    import pty

    data, out = tmp_path / "data.jsonl", tmp_path / "store"
    data.write_text("".join(f'{{"prompt": "{k} cats", "answer": "7"}}\n' for k in range(400)), encoding="utf-8")
    options = ("--data", str(data), "--task", "number", "--max-new-tokens", "60", "-n", "4", "--threads", "1")
    command = [sys.executable, "-W", "error", "-m", "swift_edge", "collect", "-m", STORIES, *options, "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1])}
    master, slave = pty.openpty()
    shown, interrupted = b"", False
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave
    ) as running:
        os.close(slave)
        while piece := _read(master):
            shown += piece
            if not interrupted and b" left" in shown:
                interrupted = True
                running.send_signal(signal.SIGINT)
        written, _ = running.communicate()
    os.close(master)
    assert (running.returncode, written) == (130, b"")
    *_, advice, last = shown.decode().replace("\r\n", "\n").rstrip("\n").split("\n")
    assert advice.rpartition("\r")[2] == f"what is complete stays in {out}; the same command goes on with it"
    assert last == "interrupted"
    kept = next(out.glob("*.jsonl*")).read_bytes()
    # A part is enough to see that it goes on.
    short = [*command, "--json"]
    with subprocess.Popen(
        short, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stderr is not None
        while b"going on" not in (line := running.stderr.readline()):
            assert line
        running.send_signal(signal.SIGINT)
        running.communicate()
    assert next(out.glob("*.jsonl*")).read_bytes()[: len(kept) // 2] == kept[: len(kept) // 2]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody writes any more
        return b""
