"""How often the tasks number and literal agree with the labels of real responses, those of GSM8K and of CRUXEval.

    python tests/bench/grader_agreement.py example_model_solutions.jsonl cruxeval.jsonl SCORED.json

The files are those of openai/grade-school-math and of facebookresearch/cruxeval. Every disagreement is printed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from swift_edge.answers import answer_task

Graded = tuple[str, str, bool]
"""A response, its reference, and whether it was labelled as right."""


def solutions(path: Path) -> Iterator[Graded]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for each in row.values():
            if isinstance(each, dict):
                yield each["solution"], row["ground_truth"], each["is_correct"]


def outputs(problems: Path, scored: Path) -> Iterator[Graded]:
    rows = map(json.loads, problems.read_text(encoding="utf-8").splitlines())
    references = {row["id"]: row["output"] for row in rows}
    document = json.loads(scored.read_text(encoding="utf-8"))
    for name, answers in document["raw_generations"].items():
        for answer, right in zip(answers, document["raw_scored_generations"][name], strict=True):
            yield answer, references[name], right


def report(name: str, graded: list[Graded]) -> None:
    task, started, agreed = answer_task(name), time.perf_counter(), 0
    for text, reference, right in graded:
        same = task.correct(text, reference) is right
        agreed += same
        if not same:
            print(f"labelled {right}: {text[-100:]!r} for {reference[-40:]!r}")
    print(f"{name}: {agreed} of {len(graded)} in {time.perf_counter() - started:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("solutions", "problems", "scored"):
        parser.add_argument(name, type=Path)
    files = parser.parse_args()
    report("number", list(solutions(files.solutions)))
    report("literal", list(outputs(files.problems, files.scored)))


if __name__ == "__main__":
    main()
