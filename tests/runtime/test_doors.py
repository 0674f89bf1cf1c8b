"""The doors: packages that give the public names, what each gives, and that most tests of the runtime use no others."""

import ast
import importlib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OPEN = frozenset(
    f"swift_edge{name}"
    for name in ("", ".answers", ".arrays", ".cli", ".errors", ".explain", ".its_hub", ".options", ".results")
)
"""Modules that are public as they are."""
DOORS = {
    "swift_edge.bundle": [
        "Architecture",
        "Bundle",
        "FileRecord",
        "Graph",
        "HiddenStates",
        "Manifest",
        "Message",
        "Precision",
        "Tokenizer",
        "Tokens",
        "file_inside",
        "open_bundle",
        "read_manifest",
        "staging_folder",
        "write_bundle",
    ],
    "swift_edge.engine": [
        "Consumer",
        "Engine",
        "Finished",
        "Generation",
        "KVCache",
        "ModelSession",
        "OpenedModel",
        "Orders",
        "PrefixCache",
        "Prompt",
        "Reading",
        "Reads",
        "Request",
        "StateWeights",
        "Step",
        "StepOutput",
        "Ticket",
        "TicketState",
        "TokenStatistics",
        "token_statistics",
    ],
    "swift_edge.evaluation": [
        "Ablations",
        "Bin",
        "Estimate",
        "HeadScores",
        "Replayed",
        "Sampled",
        "Shape",
        "Variant",
        "bench",
        "binned_calibration_error",
        "confidence",
        "evaluate",
        "expected_accuracies",
        "expected_by_size",
        "markdown",
        "measure",
        "fit_options_of",
        "problem_aurocs",
        "read_external",
        "reliability",
        "replay",
        "stored_scores",
        "variants",
    ],
    "swift_edge.scoring": [
        "PREFIX_TOKENS",
        "AnswerCalibration",
        "Calibration",
        "Feature",
        "Head",
        "KnownStates",
        "Norm",
        "PickAccuracy",
        "PrefixCalibration",
        "RunningScore",
        "Scorer",
        "TokenStatistic",
        "Verdict",
        "calibration_error",
        "check_head",
        "fit_answer_calibration",
        "fit_calibration",
        "judge",
        "load_head",
        "pick_accuracy",
        "save_head",
        "within_problem_auroc",
    ],
    "swift_edge.selection": [
        "Decided",
        "Decision",
        "Plan",
        "answer_sums",
        "combine_by_rank",
        "combine_by_scaling",
        "rank",
        "rank_by_answer",
        "redraw_weights",
    ],
    "swift_edge.training": [
        "AnsweredProblem",
        "Asked",
        "CandidateRows",
        "CollectProgress",
        "Collected",
        "FitInterrupted",
        "FitOptions",
        "Grader",
        "Grading",
        "Problem",
        "Problems",
        "Responses",
        "Shard",
        "Store",
        "StoreInfo",
        "StoreWriter",
        "StoredCandidate",
        "collect",
        "collect_responses",
        "fit_head",
        "know",
        "read_info",
        "read_problems",
        "read_responses",
        "recalibrate",
    ],
}
TAKE_PATHS = frozenset({"setattr", "delattr", "import_module", "importorskip", "patch"})
"""Functions to which a module or a name in it is named by its path."""
LEAST_SHARE = 2 / 3


@pytest.mark.parametrize("door", DOORS)
def test_a_door_gives_these_names(door: str) -> None:
    module = importlib.import_module(door)
    assert sorted(module.__all__) == sorted(DOORS[door])
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert "is a door" in (module.__doc__ or "")


def private_names(source: str) -> list[str]:
    """What a test takes from the runtime that no door gives: imports, and paths of names that it patches or imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "swift_edge":
            module = node.module or ""
            for alias in node.names:
                public = alias.name in DOORS[module] if module in DOORS else not alias.name.startswith("_")
                if module == "swift_edge":
                    public = alias.name in OPEN or is_public(f"swift_edge.{alias.name}")
                if not public or module not in OPEN | set(DOORS):
                    found.append(f"{module}.{alias.name}")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] == "swift_edge"]
            found += [name for name in names if name not in OPEN | set(DOORS)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
            paths = [text for text in texts if isinstance(text, str) and text.startswith("swift_edge.")]
            if called in TAKE_PATHS:
                found += [path for path in paths if not is_public(path)]
    return found


def is_public(path: str) -> bool:
    """Whether a dotted path is a public module, or a name that one gives."""
    module, _, name = path.rpartition(".")
    if path in OPEN or path in DOORS:
        return True
    if module == "swift_edge":
        return name in importlib.import_module("swift_edge").__all__
    return name in DOORS[module] if module in DOORS else module in OPEN and not name.startswith("_")


def test_two_thirds_of_the_test_files_use_the_doors_alone() -> None:
    files = sorted(HERE.glob("test_*.py"))
    private = {file.name: private_names(file.read_text(encoding="utf-8")) for file in files}
    others = [f"{name}: {', '.join(names)}" for name, names in private.items() if names]
    share = 1 - len(others) / len(files)
    listed = "\n".join(others)
    assert share >= LEAST_SHARE, (
        f"{len(files) - len(others)} of {len(files)} files use doors alone; these do not:\n{listed}"
    )


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("import swift_edge\nfrom swift_edge import Selector, errors\nfrom swift_edge.scoring import Head", []),
        ("from swift_edge.scoring.head import Head", ["swift_edge.scoring.head.Head"]),
        ("def f():\n    from swift_edge.scoring import scorer", ["swift_edge.scoring.scorer"]),
        ("import swift_edge.system.machine as m", ["swift_edge.system.machine"]),
        ("from swift_edge import checks", ["swift_edge.checks"]),
        ("from swift_edge.results import _WIDTH", ["swift_edge.results._WIDTH"]),
        ("from swift_edge.answers.latex import canonical_latex", ["swift_edge.answers.latex.canonical_latex"]),
        ("patch.setattr('swift_edge.engine.session.CHUNK_TOKENS', 8)", ["swift_edge.engine.session.CHUNK_TOKENS"]),
        ("patch.setattr('swift_edge.engine.Engine', None)", []),
    ],
)
def test_private_names_are_seen(source: str, private: list[str]) -> None:
    assert private_names(source) == private
