"""Print the shell block of README.md that contains a text, so that what is checked is what a reader would type."""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
blocks = [block for block in re.findall(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if sys.argv[1] in block]
if len(blocks) != 1:
    sys.exit(f"{len(blocks)} shell blocks of README.md contain {sys.argv[1]!r}; expected one")
sys.stdout.write(blocks[0])
