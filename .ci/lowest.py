"""Print the lowest version that pyproject.toml allows of every dependency of the runtime, one requirement a line."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    found = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
    if found is None:
        sys.exit(f"{requirement!r} has no lowest version; expected NAME>=VERSION in pyproject.toml")
    sys.stdout.write(f"{found[1]}=={found[2]}\n")
