"""`swift-edge fit` and `recalibrate`: what goes to stdout and stderr, and what happens when things go wrong."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swift_edge.bundle import read_manifest, write_bundle
from swift_edge.cli import commands
from swift_edge.scoring import load_head
from swift_edge.training import FitOptions, Store

MakeStore = Callable[..., Store]
STORIES = Path(__file__).parents[2] / "models" / "stories260k"
QUICK = ("--weight-decay", "0.03", "--max-iterations", "12")


Run = Callable[..., Any]


@pytest.fixture(scope="module")
def store(make_store: MakeStore) -> Path:
    return make_store(problems=40).path


@pytest.fixture(scope="module")
def local(make_store: MakeStore) -> Path:
    return make_store(problems=40, seed=1, precision="int8").path


def error_of(outcome: Any, status: int = 1) -> str:
    """The one line of an error, and nothing else."""
    assert (outcome.status, outcome.out) == (status, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_fit_writes_a_head_and_prints_its_path(run: Run, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.npz"
    outcome = run("fit", store, "--out", out, *QUICK)
    assert (outcome.status, outcome.out) == (0, f"{out}\n")
    head = load_head(out)
    assert head.layers == (1, 3)
    assert head.summary["validation"]["within_problem_auroc"] > 0.9
    lines = outcome.err.splitlines()
    assert "28 train, 6 validation, 6 calibration" in lines[0]
    assert any(line.startswith("iteration 10: loss 0.") and "AUROC" in line for line in lines)
    assert "calibration error" in lines[-2]
    assert lines[-1].startswith("verdict: 6 problems are too few to say")
    assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]


def test_json_is_one_line_with_everything(run: Run, store: Path, tmp_path: Path) -> None:
    outcome = run("fit", store, "--out", tmp_path / "head.npz", *QUICK, "--json")
    (line,) = outcome.out.splitlines()
    document = json.loads(line)
    assert document["head"] == str(tmp_path / "head.npz")
    assert document["summary"] == dict(load_head(tmp_path / "head.npz").summary)
    assert document["calibration"]["slope"] > 0


def test_options_reach_the_fit(run: Run, store: Path, make_store: MakeStore, tmp_path: Path) -> None:
    out = tmp_path / "head.npz"
    second = make_store(problems=10, seed=7).path
    options = (
        "--loss hinge --pairwise-weight 0.5 --no-gate --layers 3 --token-statistics entropy --norm rms --prefixes 1"
    )
    options += " --prefix-weight 0.5 --weight-decay 0.2 --search start --max-iterations 7 --patience 3 --problems 30"
    options += " --seed 5 --memory 2MiB --no-eos"
    assert run("fit", store, second, "--out", out, *options.split()).status == 0
    head = load_head(out)
    assert (head.gate, head.layers, head.token_statistics) == (False, (3,), ("entropy",))
    assert (head.norm, head.includes_eos) == ("rms", False)
    expected = {
        "loss": "hinge",
        "pairwise_weight": 0.5,
        "layers": [3],
        "prefixes": 1,
        "prefix_weight": 0.5,
        "weight_decay": 0.2,
        "search": "start",
        "max_iterations": 7,
        "patience": 3,
        "problems": 30,
        "seed": 5,
    }
    assert {name: head.summary["options"][name] for name in expected} == expected
    assert len(head.summary["data_sha256"]) == 2
    assert (
        run("fit", store, "--out", out, *QUICK, "--layers", "last:1", "--token-statistics", "none", "--force").status
        == 0
    )
    assert (load_head(out).layers, load_head(out).token_statistics) == ((3,), ())


def test_defaults_that_the_help_names_are_those_of_the_fit() -> None:
    fit = commands.commands["fit"]
    defaults = {each.name: each.default for each in dataclasses.fields(FitOptions)}
    named = 0
    for option in fit.params:
        assert option.name is not None
        help_text = getattr(option, "help", "") or ""
        if option.name in defaults and "[default: " in help_text:
            told = help_text.rpartition("[default: ")[2].rstrip("]")
            if option.name != "weight_decay":
                assert str(defaults[option.name]).removesuffix(".0") == told
                named += 1
    assert named >= 8
    options = {option.name: option.default for option in fit.params}
    assert options["memory_bytes"] == "1GiB"
    assert defaults["memory_bytes"] == 2**30
    assert tuple(str(options["token_statistics"]).split(",")) == defaults["token_statistics"]


def test_recalibrate_refuses_the_store_that_trained_the_head(run: Run, store: Path, tmp_path: Path) -> None:
    head, copy = tmp_path / "head.npz", tmp_path / "copy"
    assert run("fit", store, "--out", head, *QUICK).status == 0
    shutil.copytree(store, copy)
    for place in (store, copy):
        assert "was trained on the problems of" in error_of(
            run("recalibrate", head, place, "--out", tmp_path / "again")
        )
    assert not (tmp_path / "again").exists()


def test_recalibrate_writes_another_head(run: Run, store: Path, local: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "head.npz", tmp_path / "int8.npz"
    run("fit", store, "--out", first, *QUICK)
    outcome = run("recalibrate", first, local, "--out", second)
    assert (outcome.status, outcome.out) == (0, f"{second}\n")
    assert "inputs matched from fp32 to int8; before: within-problem AUROC" in outcome.err
    assert load_head(second).precision == "int8"
    (line,) = run("recalibrate", first, local, "--out", second, "--force", "--json").out.splitlines()
    assert json.loads(line)["summary"]["recalibration"]["to_precision"] == "int8"


def test_heads_are_shown_with_their_norm(run: Run, store: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(STORIES, bundle)
    run("fit", store, "--out", bundle / "head.npz", *QUICK, "--norm", "rms")
    write_bundle(bundle, read_manifest(bundle))
    document = json.loads(run("inspect", bundle, "--json").out)["head"]
    assert document["norm"] == "rms"
    assert document["calibrated"]
    assert "norm rms" in run("inspect", bundle).out


def test_a_file_that_is_there_is_not_replaced_unless_asked(run: Run, store: Path, local: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.npz"
    out.write_text("mine")
    for command in (("fit", store), ("recalibrate", out, local)):
        assert "--force" in error_of(run(*command, "--out", out))
        assert out.read_text() == "mine"
    assert run("fit", store, "--out", out, *QUICK, "--force").status == 0
    assert load_head(out).layers == (1, 3)
    assert "exists already" in error_of(run("fit", store, "--out", tmp_path, "--force"))
    assert "there is no folder" in error_of(run("fit", store, "--out", tmp_path / "absent" / "head.npz"))


def test_errors_are_one_line(run: Run, store: Path, local: Path, make_store: MakeStore, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "head.npz")
    assert "store.json" in error_of(run("fit", tmp_path / "absent", *out))
    assert "loss is 'mse'; expected one of bce" in error_of(run("fit", store, *out, "--loss", "mse"), 2)
    assert "token_statistics" in error_of(run("fit", store, *out, "--token-statistics", "length"), 2)
    assert "memory_bytes" in error_of(run("fit", store, *out, "--memory", "3"), 2)
    assert "layers is '2'; expected all, last:K with K from 1 to 2, or some of 1,3" in error_of(
        run("fit", store, *out, "--layers", "2"), 2
    )
    assert "has precision" in error_of(run("fit", store, local, *out))
    hopeless = make_store(problems=3, labels=[[True, True]] * 3).path
    assert "nothing can be learned from 3 problems" in error_of(run("fit", hopeless, *out))
    assert "no head file" in error_of(run("recalibrate", tmp_path / "absent.npz", store, *out))
    assert list(tmp_path.iterdir()) == []


def test_a_call_that_makes_no_sense_is_a_usage_error(run: Run, store: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "head.npz")
    for arguments in (("fit", *out), ("fit", store), ("fit", store, *out, "--memory", "much"), ("recalibrate", store)):
        assert run(*arguments).status == 2


def test_an_interruption_before_anything_is_found_leaves_nothing(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scipy.optimize.minimize", interrupted)
    outcome = run("fit", store, "--out", tmp_path / "head.npz")
    assert outcome.status == 130
    assert outcome.err.splitlines()[-2:] == [
        f"no head is finished, so nothing is written to {tmp_path / 'head.npz'}",
        "interrupted",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "head.npz"
    run("fit", store, "--out", out, *QUICK)
    before = out.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    outcome = run("fit", store, "--out", out, *QUICK, "--force", "--seed", "2")
    assert outcome.status == 1
    assert "No space left" in outcome.err.splitlines()[-1]
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("1KiB", 2**10), ("512 KiB", 2**19), ("1.5kib", 1536), ("1MB", 10**6), ("1000", 1000), ("7kb", 7000)],
)
def test_memory_is_read_with_its_unit(run: Run, store: Path, tmp_path: Path, text: str, size: int) -> None:
    line = error_of(run("fit", store, "--out", tmp_path / "head.npz", "--memory", text), 2)
    assert f"memory_bytes is {size}; expected" in line


@pytest.mark.parametrize("text", ["-1GiB", "1GiBs", "G", "", "1e9"])
def test_what_is_no_amount_of_memory_is_a_usage_error(run: Run, store: Path, tmp_path: Path, text: str) -> None:
    outcome = run("fit", store, "--out", tmp_path / "head.npz", "--memory", text)
    assert outcome.status == 2
    assert "no amount of memory" in outcome.err


@pytest.mark.parametrize(("text", "layers"), [("all", (1, 3)), ("last:2", (1, 3)), ("3,1,3", (1, 3)), ("last:1", (3,))])
def test_layers_are_those_of_the_store(
    run: Run, store: Path, tmp_path: Path, text: str, layers: tuple[int, ...]
) -> None:
    out = tmp_path / "head.npz"
    assert run("fit", store, "--out", out, *QUICK, "--layers", text).status == 0
    assert load_head(out).layers == layers


def test_layers_that_a_store_does_not_hold_are_refused(
    run: Run, store: Path, make_store: MakeStore, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "head.npz")
    line = error_of(run("fit", store, *out, "--layers", "last:3"), 2)
    assert re.search(r"layers is 'last:3'; expected all, last:K with K from 1 to 2", line)
    logits = make_store(problems=4, feature="logits", layers=()).path
    assert "holds logits" in error_of(run("fit", logits, *out, "--layers", "1"), 2)
