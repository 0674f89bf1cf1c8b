"""The README does what it says: its Python runs, its commands run, the files it lists are there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import swift_edge

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run this interpreter in the root of the repository."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_the_python_runs_from_the_root_of_the_repository() -> None:
    # The blocks are one program: the second goes on with the selector of the first.
    program = "\n".join(blocks("python"))
    assert "Selector(" in program
    finished = run("-c", program)
    assert finished.returncode == 0, finished.stderr
    score, text = finished.stdout.splitlines()[0].split(" ", 1)
    assert float(score) < 0
    assert text.strip()
    assert "Picked" in finished.stdout.splitlines()
    assert any(line.startswith("33 ") for line in finished.stdout.splitlines())  # the right answer, with its posterior


def test_the_first_command_picks_the_best_of_eight() -> None:
    (command,) = [block for block in blocks("sh") if "python3 -m venv" in block]
    setting_up, install, pick = command.strip().split(" && ")
    assert setting_up == "python3 -m venv .venv"
    assert install == ".venv/bin/pip install ."
    # Setting up takes a package registry and is for .ci/run; what follows it runs here as it is written.
    program, *arguments = shlex.split(pick)
    assert program == ".venv/bin/swift-edge"
    finished = run("-m", "swift_edge", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()
    rows = [line for line in finished.stderr.splitlines() if " of 8 " in line and "answer" not in line]
    assert rows[0].split()[0] == "1"
    # Those that say the same have one line, which says how many they are.
    assert sum(int((re.findall(r"; x(\d+), with", row) or [1])[0]) for row in rows) == 8


@pytest.mark.skipif(not (ROOT / "export").is_dir(), reason="the sources are not here")
def test_the_tree_lists_every_folder_and_every_file_at_the_top() -> None:
    (tree,) = [block for block in blocks("text") if "swift_edge/ " in block]
    listed: set[str] = set()
    folders: list[str] = []  # one per level of indentation
    for indent, name in re.findall(r"^( *)(\S+)", tree, re.MULTILINE):
        level = len(indent) // 2
        path = "".join(folders[:level]) + name
        assert (ROOT / path).exists(), path
        folders[level:] = [name] if name.endswith("/") else []
        listed.add(path)
    for package in (ROOT / "swift_edge", ROOT / "export" / "swift_edge_export"):
        files = {path for path in package.glob("*.py") if not path.name.startswith("__")}
        folders_found = {path.parent for path in package.rglob("*.py")}
        expected = {path.relative_to(ROOT).as_posix() for path in files}
        expected |= {f"{path.relative_to(ROOT).as_posix()}/" for path in folders_found}
        root = package.relative_to(ROOT).as_posix()
        assert {name for name in listed if name.startswith(f"{root}/")} == expected


def test_commands_in_the_examples_exist() -> None:
    from swift_edge.cli import commands

    used = set(re.findall(r"swift-edge ([a-z-]+)", "".join(blocks("sh"))))
    assert {"pick", "score", "export", "inspect", "convert-head"} <= used
    assert used <= set(commands.commands)
