"""docs/security.md says what the code does: its bounds are the code's."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "million": 10**6}

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the sources are not here")


def bounds() -> list[tuple[str, str, str]]:
    """The rows of the page's table of bounds that name a constant: what, how much, the constant."""
    rows = [line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    named = [(*row[:2], re.search(r"`(swift_edge[\w.]+)`", row[2])) for row in rows if len(row) == 3]
    return [(what.strip(), most.strip(), match[1]) for what, most, match in named if match]


def amount(text: str) -> float:
    """The number that a cell of the table begins with: `amount("64 MiB")` is 67108864."""
    match = re.match(r"([\d,.]+)(?: (KiB|MiB|GiB|million))?", text)
    assert match, text
    return float(match[1].replace(",", "")) * UNITS[match[2] or ""]


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    found = bounds()
    assert found
    for what, most, constant in found:
        module, _, name = constant.rpartition(".")
        if module.startswith("swift_edge_export") and importlib.util.find_spec("torch") is None:
            continue
        assert amount(most) == getattr(importlib.import_module(module), name), f"{what}: {constant}"


def test_the_commands_of_the_page_are_there() -> None:
    commands = re.findall(r"python (tests/\S+)", PAGE.read_text(encoding="utf-8"))
    assert len(commands) == 3
    assert [command for command in commands if not (ROOT / command).exists()] == []
