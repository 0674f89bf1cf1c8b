"""Arguments and stdin of the commands, in a folder with a bundle, problems, a store and a head."""

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import promise
from fixtures import ADDITION
from folders import new_folder, scratch, unpack

COMMANDS = ("pick", "score", "inspect", "collect", "fit", "recalibrate", "convert-head")
"""`export` loads whole models and `eval` and `bench` measure for seconds: what they read has targets of its own."""
WORDS = tuple(
    word.encode()
    for word in (
        "\npick\n", "\nscore\n", "\ninspect\n", "\ncollect\n", "\nfit\n", "\nrecalibrate\n", "\n-m\nmodel\n",
        "\n-n\n2\n", "\n--seed\n1\n", "\n--json\n", "\n--head\nhead.npz\n", "\n--task\nnumber\n", "\n--out\nnew\n",
        "\n--out\nstore\n", "\n--force\n", "\n--data\nproblems.jsonl\n", "\n--responses\nresponses.jsonl\n",
        "\n--explain\npage.html\n", "\n--stop\n", "\n--temperature\n", "\n--top-p\n", "\n--top-k\n", "\n--min-p\n",
        "\n--prune\n16:8\n", "\n--max-n\n", "\n--min-confidence\n0.9\n", "\n--strategy\nmajority\n",
        "\n--signal\nself_certainty\n", "\n--raw\n", "\n--rows\n", "\n--threads\n1\n", "\n--provider\ncpu\n",
        "\n--layers\nlast:1\n", "\n--budget-tokens\n", "\n--budget-seconds\n", "\n--limit\n", "\n--feature\nlogits\n",
        "\n--tokens-per-candidate\n", "\n--loss\nhinge\n", "\n--no-gate\n", "\n--memory\n1GiB\n",
        "\n--token-statistics\nnone\n", "\n--\n", "\n-h\n", "\n--version\n", "=", "nan", "inf", "1e999",
    )
)  # fmt: skip


@functools.cache
def furniture() -> Path:
    """What lies in the folder before each input."""
    folder = new_folder()
    shutil.copytree(ADDITION, folder / "model")
    (folder / "problems.jsonl").write_text(
        '{"prompt": "331970", "answer": 1301}\n{"prompt": "100200", "answer": 300}\n'
    )
    (folder / "responses.jsonl").write_text(
        '{"prompt": "331970", "completions": ["1301", "9"], "correctness": [1, 0]}\n'
    )
    options = ("--data", "problems.jsonl", "--task", "number", "-n", "2", "--max-new-tokens", "3", "--out", "store")
    with _inside(folder):
        promise.command("collect", "-m", "model", *options)
    return folder


def target(data: bytes) -> None:
    files = unpack(data)
    lines = files.get("arguments.txt", b"").split(b"\n")
    # No argument has a NUL; and none leads out of the folder.
    arguments = [os.fsdecode(line.replace(b"\0", b"")).replace("/", "_").replace("..", "_") for line in lines if line]
    if not arguments:
        return  # prints the help, as a group of commands does
    if arguments[0] not in COMMANDS:
        del arguments[1:]
    with scratch() as folder:
        shutil.copytree(furniture(), folder / "here")
        with _inside(folder / "here"):
            promise.command(*_quick(arguments), stdin=files.get("stdin.txt", b""))


def _quick(arguments: list[str]) -> list[str]:
    """The arguments without a number that asks for seconds of work; absurd ones stay."""
    short = [re.sub(r"^(\d)\d{1,4}$", r"\1", argument) for argument in arguments]
    if short[:1] == ["pick"] and "--max-new-tokens" not in short:
        short.insert(1, "--max-new-tokens=3")
    return short


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
