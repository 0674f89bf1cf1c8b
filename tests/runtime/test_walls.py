"""The walls of the house: no folder of the runtime imports from one above it, and some packages stay where they are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "swift_edge"
FLOORS = (
    ("errors",),
    ("arrays", "field_texts", "records", "checks", "system", "answers"),
    ("options", "results"),
    ("bundle",),
    ("engine",),
    ("scoring",),
    ("selection",),
    ("handle",),
    ("many_prompts",),
    ("selector",),
    ("training", "its_hub", "explain"),
    ("evaluation",),
    ("cli", "server"),
    ("__main__",),
)
"""From the ground up: a part imports from its own folder and from floors below, nothing beside it nor above."""
AT_THE_EDGE = frozenset({"click", "starlette", "uvicorn"})
"""What only the command line and the server know."""
ELSEWHERE = frozenset({"torch", "transformers", "optimum", "onnx", "swift_edge_export"})
"""What the runtime never imports, not even inside a function; `cli.exporting` loads the exporter by its name."""
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Every module that a source imports, wherever the import stands, with its line; `package` holds the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from swift_edge import checks` imports a module, `from swift_edge import Selector` a name of the package.
            yield from ((node.lineno, f"{base}.{alias.name}" if base == "swift_edge" else base) for alias in node.names)


def breaches(part: str, source: str, package: str = "swift_edge") -> list[str]:
    """What a source of a part of the runtime imports and should not."""
    found = []
    for line, module in imported(source, package):
        top, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if top in ELSEWHERE or (top in AT_THE_EDGE and part not in ("cli", "server", "__main__")):
            found.append(f"line {line}: {module}")
        elif top == "swift_edge" and other not in (part, "__version__"):
            # Names that swift_edge itself gives come from as high as the selector.
            floor = FLOOR.get(other, FLOOR["selector"])
            if floor >= FLOOR[part]:
                found.append(f"line {line}: {module}")
    return found


def sources() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path


def test_every_part_of_the_runtime_has_a_floor() -> None:
    assert {part for part, _ in sources()} <= set(FLOOR)


def test_nothing_imports_upward() -> None:
    found = []
    for part, path in sources():
        package = ".".join(path.relative_to(ROOT).parent.parts)
        found += [f"{path.relative_to(ROOT)} {breach}" for breach in breaches(part, path.read_text(), package)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("part", "source", "count"),
    [
        ("engine", "from swift_edge.scoring.head import Head", 1),
        ("engine", "def f():\n    from swift_edge.selection import rank", 1),
        ("engine", "import swift_edge.selection.pick as p", 1),
        ("engine", "from swift_edge import scoring", 1),
        ("engine", "from ..scoring import head", 1),
        ("engine", "from swift_edge.bundle.manifest import Bundle\nfrom swift_edge.engine.rows import Rows", 0),
        ("scoring", "from swift_edge.selection.ranking import rank", 1),
        ("bundle", "from swift_edge.engine.providers import DEVICES", 1),
        ("selection", "from swift_edge import Selector", 1),
        ("training", "from swift_edge import Selector, __version__", 0),
        ("selection", "import click", 1),
        ("cli", "import click", 0),
        ("cli", "def f():\n    import torch.nn", 1),
        ("cli", "import swift_edge_export.publish", 1),
        ("errors", "import numpy", 0),
    ],
)
def test_a_breach_is_seen(part: str, source: str, count: int) -> None:
    assert len(breaches(part, source, f"swift_edge.{part}")) == count
