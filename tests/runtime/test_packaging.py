"""What is installed: the files of the wheel, its metadata, and what the runtime does not import."""

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import swift_edge

ROOT = Path(__file__).parents[2]
RUNTIME = Path(swift_edge.__file__).parent
BANNED = {"torch", "transformers", "optimum", "onnx", "onnxscript", "onnx_ir", "swift_edge_export"}


def metadata() -> importlib.metadata.PackageMetadata:
    try:
        return importlib.metadata.metadata("swift-edge")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("swift-edge is not installed, only importable")


def project() -> dict[str, object]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(table, dict)
    return table


def imported_packages(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_runtime_imports_its_five_dependencies_and_nothing_else() -> None:
    sources = sorted(RUNTIME.rglob("*.py"))
    assert len(sources) > 10
    imported = {source.relative_to(RUNTIME).as_posix(): imported_packages(source) for source in sources}
    allowed = set(sys.stdlib_module_names) | {"swift_edge", "click", "jinja2", "numpy", "onnxruntime", "tokenizers"}
    assert {name: packages - allowed for name, packages in imported.items() if packages - allowed} == {}


def test_only_two_commands_reach_for_the_exporter_by_name() -> None:
    # importlib.import_module("torch") would slip past the imports: look for the names in every string, too.
    reaching, extras = set(), set()
    for source in RUNTIME.rglob("*.py"):
        name = source.relative_to(RUNTIME).as_posix()
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.endswith("import_extra"):
                extras.add(ast.unparse(node.args[0]).strip("'\"").partition(".")[0])
            # What import_extra imports is what its callers name.
            elif called.endswith(("import_module", "__import__")) and name != "system/extras.py":
                named = ast.unparse(node.args[0])
                if named.strip("'\"").partition(".")[0] in BANNED or not isinstance(node.args[0], ast.Constant):
                    reaching.add(name)
    assert reaching == {"cli/exporting.py"}
    assert "scipy" in extras
    assert extras <= {"scipy", "matplotlib", "its_hub", "datasets"}


def test_versions_agree() -> None:
    assert metadata()["Version"] == swift_edge.__version__ == project()["version"]


def test_extras_are_those_that_messages_name() -> None:
    assert {"export", "optimum", "its-hub", "test", "dev"} <= set(metadata().get_all("Provides-Extra") or [])


def test_the_runtime_needs_no_extra_and_no_torch() -> None:
    metadata()
    required = [text for text in importlib.metadata.requires("swift-edge") or [] if "extra ==" not in text]
    names = {re.split(r"[<>=!~ ;\[]", text)[0] for text in required}
    assert names == {"click", "jinja2", "numpy", "onnxruntime", "tokenizers"}


def test_every_requirement_of_the_runtime_has_a_lowest_version() -> None:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert [text for text in dependencies if not re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", text)] == []


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if not (ROOT / "swift_edge").is_dir():
        pytest.skip("the sources are not here")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("the build back end is not installed; the extra `dev` brings it")
    # From a copy: setuptools would take over what an earlier build left behind in the checkout.
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("swift_edge", "export"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(source)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.mark.slow
def test_the_wheel_has_every_source_file(wheel_names: list[str]) -> None:
    for folder, package in ((ROOT, "swift_edge"), (ROOT / "export", "swift_edge_export")):
        sources = {
            path.relative_to(folder).as_posix()
            for path in (folder / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert f"{package}/py.typed" in sources
        assert sources == {name for name in wheel_names if name.startswith(f"{package}/")}


def test_the_wheel_has_nothing_but_the_two_packages_and_the_licence(wheel_names: list[str]) -> None:
    assert {name.partition("/")[0] for name in wheel_names} == {
        "swift_edge",
        "swift_edge_export",
        f"swift_edge-{swift_edge.__version__}.dist-info",
    }
    assert [name for name in wheel_names if name.endswith("/LICENSE")]
