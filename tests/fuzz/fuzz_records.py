"""Files of records: problems, responses, another judge's scores, settings, options. What is read can be written."""

import json
from pathlib import Path
from typing import get_args

import promise
from folders import scratch, unpack, write

from swift_edge import PickOptions
from swift_edge.answers import ANSWER_TASKS
from swift_edge.bundle import Manifest
from swift_edge.evaluation.external import read_external
from swift_edge.options import BenchmarkName, CollectOptions
from swift_edge.training import Grading, StoreInfo, read_problems, read_responses

WHERE = Path("file")


def target(data: bytes) -> None:
    files = unpack(data)
    for name, content in files.items():
        text = content.decode("utf-8", "replace")
        if name == "manifest.json":
            manifest = promise.kept(lambda text=text: Manifest.from_json(text, WHERE))
            if manifest is not None:
                again = Manifest.from_json(manifest.to_json(), WHERE)
                promise.require(again == manifest, "a manifest changes when it is written")
        elif name == "store.json":
            info = promise.kept(lambda text=text: StoreInfo.from_json(text, WHERE))
            if info is not None:
                again = StoreInfo.from_json(info.to_json(), WHERE)
                promise.require(again.difference(info) is None, "settings change when they are written")
        elif name in ("pick.json", "collect.json"):
            _read_options(name, text)
    if any(name.endswith(".jsonl") for name in files):
        with scratch() as folder:
            write(files, folder)
            _read_lines(folder)


def _read_options(name: str, text: str) -> None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    if name == "pick.json":
        options = promise.kept(lambda: PickOptions.from_dict(document))
        if options is not None:
            promise.require(PickOptions.from_dict(options.to_dict()) == options, "options change when they are written")
    elif isinstance(document, dict):
        named = {key: value for key, value in document.items() if key in CollectOptions.__dataclass_fields__}
        promise.kept(lambda: CollectOptions.of(None, named))


def _read_lines(folder: Path) -> None:
    if (folder / "problems.jsonl").exists():
        problems = promise.kept(lambda: read_problems(folder / "problems.jsonl"))
        for name in ANSWER_TASKS if problems is not None else ():
            grading = Grading(name)
            for problem in problems.rows[:20]:
                promise.kept(lambda grading=grading, problem=problem: grading.check(problem))
        for name in get_args(BenchmarkName):
            promise.kept(lambda name=name: read_problems(folder / "problems.jsonl", benchmark=name, skip=1, shuffle=2))
    if (folder / "responses.jsonl").exists():
        promise.kept(lambda: read_responses(folder / "responses.jsonl"))
    if (folder / "scores.jsonl").exists():
        scores = promise.kept(lambda: read_external(folder / "scores.jsonl", 2, 2))
        promise.require(scores is None or scores.shape == (2, 2), "a score per candidate")
