"""`swift-edge eval` from end to end: what goes to stdout, to stderr and into the folder, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge.bundle import open_bundle
from swift_edge.scoring import Head, save_head

pytest.importorskip("matplotlib")

Run = Callable[..., Any]

ADDITION = Path(__file__).parents[2] / "tests" / "data" / "addition-gpt2-h1_l1"
QUICK = ("-m", str(ADDITION), "--task", "exact", "-n", "1,2,4", "--max-new-tokens", "4", "--threads", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "test.jsonl"
    rows = [
        {"prompt": f"{a}{b}", "answer": f"{a + b:04}", "kind": "even" if (a + b) % 2 == 0 else "odd"}
        for a, b in np.random.default_rng(0).integers(100, 1000, (40, 2)).tolist()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that is the mean log-probability: no gate, and no weight but on that."""
    manifest = open_bundle(ADDITION).manifest
    weight = np.zeros((1, manifest.architecture.hidden_size + 1), np.float32)
    weight[0, -1] = 1
    path = tmp_path_factory.mktemp("head") / "head.npz"
    head = Head(
        weight,
        np.zeros(1, np.float32),
        layers=(1,),
        token_statistics=("logprob",),
        gate=False,
        fingerprint=manifest.fingerprint,
        precision="fp32",
    )
    save_head(path, head)
    return path


def cells(table: str, name: str) -> list[str]:
    """The first row of that name."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_tables_on_stdout_the_report_on_stderr_and_everything_in_the_folder(
    run: Run, data: Path, head: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    outcome = run("eval", *QUICK, "--data", str(data), "--out", str(out), "--head", f"loglik={head}")
    assert outcome.status == 0, outcome.err
    assert outcome.out == (out / "results.md").read_text(encoding="utf-8")
    assert outcome.out.startswith("# addition-gpt2-h1_l1 (fp32) on test.jsonl\n")
    assert str(out) in outcome.err.splitlines()[-1]
    assert "|" not in outcome.err
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    pass_at_1, oracle = cells(outcome.out, "pass@1"), cells(outcome.out, "oracle")
    assert float(pass_at_1[1]) == float(pass_at_1[3]) == float(oracle[1])
    assert float(oracle[1]) < float(oracle[2]) < float(oracle[3])
    assert [float(cell) for cell in oracle[1:4]] == [
        round(results["accuracy"]["oracle"][size]["value"], 3) for size in ("1", "2", "4")
    ]
    # The fourth digit cannot be fed: what the head sees of the mean log-probability is three digits of four.
    assert abs(float(cells(outcome.out, "loglik")[3]) - float(cells(outcome.out, "mean_logprob")[3])) < 0.25
    assert sum(kind["problems"] for kind in results["families"]["kind"].values()) == 40
    # No calibration, no drawing of one.
    assert results["calibration"] == {"loglik": None}
    drawings = {file.name for file in out.iterdir() if file.suffix in (".png", ".svg")}
    assert drawings == {"accuracy.png", "accuracy.svg"}


def test_json_is_one_line_with_everything_and_the_test_goes_on(run: Run, data: Path, tmp_path: Path) -> None:
    arguments = (*QUICK, "--data", str(data), "--out", str(tmp_path / "out"), "--limit", "8", "--seed", "5")
    first = run("eval", *arguments)
    again = run("eval", *arguments, "--json")
    (line,) = again.out.splitlines()
    results = json.loads(line)
    assert results == json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert (results["problems"], results["run"]["seed"], results["sizes"]) == (8, 5, [1, 2, 4])
    assert "is complete" in again.err
    assert first.out == (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


def test_other_settings_need_another_folder_or_force(run: Run, data: Path, tmp_path: Path) -> None:
    arguments = (*QUICK, "--data", str(data), "--out", str(tmp_path / "out"), "--limit", "4")
    assert run("eval", *arguments).status == 0
    refused = run("eval", *arguments, "--seed", "1")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("error: ")
    assert "seed" in refused.err
    assert run("eval", *arguments, "--seed", "1", "--force").status == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("-n", "one"), "such as 1,2,4,8"),
        (("--head", "head.npz"), "NAME=PATH"),
        (("--head", "a=x", "--head", "a=y"), "given twice"),
        (("--other", "=x"), "NAME=PATH"),
        (("--what",), "--what"),
    ],
)
def test_wrong_calls_are_status_2(run: Run, data: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    outcome = run("eval", *QUICK, "--data", str(data), "--out", str(tmp_path / "out"), *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert hint in outcome.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--head", "x=absent.npz"), "absent.npz"),
        (("--external", "absent.jsonl"), "absent.jsonl"),
        (("--train", "absent"), "absent"),
        (("-m", "absent"), "absent"),
    ],
)
def test_errors_are_one_line_and_status_1(
    run: Run, data: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    outcome = run("eval", *QUICK, "--data", str(data), "--out", str(tmp_path / "out"), *arguments)
    assert (outcome.status, outcome.out) == (1, "")
    assert hint in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--task", "guess"), "guess"),
        (("-n", "0,4"), "at least 1"),
        (("--head", "oracle=absent.npz"), "oracle"),
        (("--other", "int8=absent"), "no head"),
        (("--temperature", "0"), "temperature"),
    ],
)
def test_bad_values_of_options_are_one_line_and_status_2(
    run: Run, data: Path, tmp_path: Path, arguments: tuple[str, ...], hint: str
) -> None:
    outcome = run("eval", *QUICK, "--data", str(data), "--out", str(tmp_path / "out"), *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert hint in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_row_without_an_answer_is_named_by_its_line(run: Run, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(data.read_text().splitlines()[0] + '\n{"prompt": "100100"}\n')
    outcome = run("eval", *QUICK, "--data", str(broken), "--out", str(tmp_path / "out"))
    assert outcome.status == 1
    assert "broken.jsonl line 2 has no answer" in outcome.err
