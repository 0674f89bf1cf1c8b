"""What every test run has in common: versions in the header, hypothesis profiles, tests of an absent extra left out."""

import importlib
import importlib.metadata
import importlib.util
import os

import pytest
from hypothesis import settings

# No deadlines: the machine that runs the tests may be busy. HYPOTHESIS_PROFILE=thorough looks for longer.
settings.register_profile("quick", deadline=None, max_examples=10)
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# What a user's cache knows of this machine must not decide what a test sees; tests of the cache name a folder.
os.environ["SWIFT_EDGE_CACHE"] = "off"

PACKAGES = (
    "click",
    "its-hub",
    "jinja2",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "optimum-onnx",
    "tokenizers",
    "torch",
    "transformers",
)


def pytest_report_header(config: pytest.Config) -> list[str]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = importlib.import_module("onnxruntime")
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ["versions: " + ", ".join(versions), "providers: " + ", ".join(onnxruntime.get_available_providers())]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("optimum") is None:
        skip = pytest.mark.skip(reason='needs the extra: pip install "swift-edge[optimum]"')
        for item in items:
            if item.get_closest_marker("optimum") is not None:
                item.add_marker(skip)
