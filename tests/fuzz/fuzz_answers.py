"""Graders on any text: nothing is raised, equality is an equivalence, and the work is bounded by the length."""

import zlib

import promise
from folders import unpack

from swift_edge.answers import ANSWER_TASKS, AnswerTask
from swift_edge.errors import InvalidOptionError

MOST_CHARACTERS = 1000
LONG = 30_000
"""Characters of the long form of some inputs: work that grew with their square would pass the limit of time."""
WORDS = tuple(
    word.encode()
    for word in (
        r"\boxed{", "}", r"\frac{1}{2}", r"\sqrt{2}", r"\dfrac", "^", "_", "{", "$", "$$", r"\[", r"\]", r"\text{cm}",
        "The answer is ", "answer: ", "####", "**", "`", "```\n", "(A)", "B", " and ", "Yes", "no", "1,234.50",
        "10^6", "-5", "3/4", "50%", "1e9", "[1, 2]", "{'a': 1}", "'x'", "None", "True",
        "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", r"\pm", "x=3", r"\infty", "(0,1]", r"\cup", "!", "\u00bd",
        "\uff15", "\u00b2", ":", "12:30", r"\log_2 8", "|x|", "==", r"\left(", r"\right)", r"\cdot", "9" * 400,
        "\u2212", "mod", r"\binom{5}{2}", "e^{i\\pi}", "\\sum_{i=1}^{9}", ".",
        r"\sum_{k=1}^{n}", r"\sum_{k=0}^{\infty}", "(-1)^{n}", "(n+1)!", "C_{10}^{3}", r"\color{red}", r"\left\{",
        r"\\[4pt]", r"\begin{array}{l}", r"\end{array}", r"\forall x", r"k\in\mathbb{Z}", " where $k$ is an integer",
        r"\right.", "n", "k", "maybe yes", "The ",
    )
)  # fmt: skip


def target(data: bytes) -> None:
    files = unpack(data)
    first, second = (_text(files.get(name, b""))[:MOST_CHARACTERS] for name in ("a.txt", "b.txt"))
    for task in ANSWER_TASKS.values():
        _check(task, first, second)
    if zlib.crc32(data) % 2000 == 0 and first:
        long = (first * (LONG // len(first) + 1))[:LONG]
        for task in ANSWER_TASKS.values():
            _check(task, long, second)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _check(task: AnswerTask, first: str, second: str) -> None:
    answer = task.extract(first)
    promise.require(answer is None or isinstance(answer, str), f"{task.name} extracts {answer!r:.100}")
    canonical = [task.canonical(text) for text in (first, second)]
    same = task.equal(second, first)
    promise.require(same == (canonical[0] == canonical[1]), f"{task.name}: equal and canonical disagree")
    groups = task.groups([first, None, second, first])
    promise.require(
        sorted(index for group in groups for index in group) == [0, 2, 3], f"{task.name}: groups are {groups}"
    )
    reference = task.reference(second)
    try:
        label = task.correct(first, second)
    except InvalidOptionError as error:
        promise.check_line(str(error))
        promise.require(reference is None, f"{task.name} refuses a reference that it reads")
    else:
        promise.require(reference is not None, f"{task.name} grades by a reference that it does not read")
        promise.require(isinstance(label, bool), f"{task.name} gives {label!r}")
