"""JSON lines from outside: problems, ready-made responses, scores of another judge."""

import promise
from folders import scratch, unpack, write

from swift_edge.answers import ANSWER_TASKS
from swift_edge.evaluation.external import read_external
from swift_edge.training import Grading, read_problems, read_responses


def target(data: bytes) -> None:
    files = unpack(data)
    with scratch() as folder:
        write(files, folder)
        if "problems.jsonl" in files:
            problems = promise.kept(lambda: read_problems(folder / "problems.jsonl"))
            for name in ANSWER_TASKS if problems is not None else ():
                grading = Grading(name)
                for problem in problems.rows[:20]:
                    promise.kept(lambda grading=grading, problem=problem: grading.check(problem))
                    promise.kept(lambda grading=grading, problem=problem: grading.correct(problem, "It is 7."))
        if "responses.jsonl" in files:
            promise.kept(lambda: read_responses(folder / "responses.jsonl"))
        if "scores.jsonl" in files:
            scores = promise.kept(lambda: read_external(folder / "scores.jsonl", 2, 2))
            promise.require(scores is None or scores.shape == (2, 2), "a score per candidate")
